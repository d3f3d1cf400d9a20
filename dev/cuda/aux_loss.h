// The auxiliary loss: sigma_hat over the positions that count, then lambda times the mean of (sigma - target)^2 over all, or
// that divided by sigma_hat^2 if it is relative. The target is sigma_hat, times settings.position0 where t = 0.
// out (1); sigma, tokens (B,T)
#pragma once

#include "lab.h"

namespace lnfree::cuda::lab {

using AuxLossFunction = void (*)(AuxTerm* out, const float* sigma, const int32_t* tokens, int32_t end_of_text,
                                 const AuxSettings& settings, double scale, int64_t B, int64_t T, cudaStream_t stream);

// v1: one thread.
static __global__ void aux_loss_v1_kernel(AuxTerm* out, const float* sigma, const int32_t* tokens, int32_t end_of_text,
                                          AuxSettings settings, double scale, int64_t N, int64_t T) {
    double sigma_hat = 0, squares = 0;
    int64_t counted = 0;
    for (int64_t n = 0; n < N; n++) {
        if (n % T == 0 || tokens[n] == end_of_text) continue;
        sigma_hat += static_cast<double>(sigma[n]);
        counted++;
    }
    const bool active = settings.weight != 0 && counted > 0;
    sigma_hat = active ? sigma_hat / static_cast<double>(counted) : 0;
    const double weight = active && settings.relative ? settings.weight / (sigma_hat * sigma_hat) : settings.weight;
    for (int64_t n = 0; n < N; n++) {
        const double off = sigma[n] - (n % T == 0 ? settings.position0 : 1) * sigma_hat;
        squares += off * off;
    }
    out->sigma_hat = static_cast<float>(sigma_hat);
    out->target_at_0 = static_cast<float>(settings.position0 * sigma_hat);
    out->T = static_cast<unsigned>(T);
    out->factor = static_cast<float>(scale * weight * 2.0 / static_cast<double>(N));
    out->loss = active ? weight / static_cast<double>(N) * squares : 0;
    out->active = active;
}
inline void aux_loss_v1(AuxTerm* out, const float* sigma, const int32_t* tokens, int32_t end_of_text,
                        const AuxSettings& settings, double scale, int64_t B, int64_t T, cudaStream_t stream) {
    launch(aux_loss_v1_kernel, blocks(1), dim3(1), 0, stream, out, sigma, tokens, end_of_text, settings, scale, B * T,
           T);
}

inline std::vector<Version<AuxLossFunction>> aux_loss_versions() {
    return {{1, "plain", "one thread", aux_loss_v1}, {2, "engine", "one block of 1024 threads", aux_loss}};
}

}  // namespace lnfree::cuda::lab
