// The laboratory of attention in decoding:  make dev/cuda/attention_cached && dev/cuda/attention_cached [VERSION]
#include "attention_cached.h"

namespace lnfree::cuda::lab {

template <class X>
struct AttentionCachedProblem {
    struct Shape {
        int64_t B, T, first, capacity, NH, HS;
    };
    static auto versions() { return attention_cached_versions<X>(); }
    // The first token; a prompt; one more; several more; the last that fits.
    static std::vector<Shape> small() {
        return {{1, 1, 0, 1, 1, 1},
                {2, 5, 0, 9, 3, 17},
                {3, 1, 37, 64, 2, 64},
                {2, 3, 150, 160, 2, 33},
                {1, 1, 7, 8, 1, 256}};
    }
    // Four sequences of GPT-2 Small at their end.
    static Shape large() { return {4, 1, 1023, 1024, 12, 64}; }

    Shape s;
    int64_t C, positions;
    Floats qkv_of_all;  // (B,first + T,3C), as X can hold it
    DeviceArray<X> qkv, cache, out;

    explicit AttentionCachedProblem(const Shape& shape)
        : s(shape),
          C(s.NH * s.HS),
          positions(s.first + s.T),
          qkv_of_all(floats(rounded<X>(normal_values(s.B * positions * 3 * C, 1)))),
          qkv(s.B * s.T * 3 * C),
          cache(s.B * s.capacity * 2 * C),
          out(s.B * s.T * C) {
        Floats fresh;
        for (int64_t b = 0; b < s.B; b++) fresh.insert(fresh.end(), row(b, s.first), row(b, positions));
        qkv.set(rounded<X>(fresh));
    }
    // Where position t of sequence b begins.
    const float* row(int64_t b, int64_t t) const { return qkv_of_all.data() + (b * positions + t) * 3 * C; }
    // Of the positions up to `end`; what nobody has decoded is NaN.
    Floats cache_up_to(int64_t end) const {
        Floats values(static_cast<size_t>(s.B * s.capacity * 2 * C), NAN);
        for (int64_t b = 0; b < s.B; b++)
            for (int64_t t = 0; t < end; t++)
                std::copy_n(row(b, t) + C, 2 * C, values.data() + (b * s.capacity + t) * 2 * C);
        return values;
    }
    std::string name() const { return label<X>(s.B, positions, C); }
    // The cache and the new positions read, their keys, values and results written.
    double bytes() const {
        const int64_t values = s.B * s.first * 2 * C + s.B * s.T * (3 + 2 + 1) * C;
        return static_cast<double>(sizeof(X)) * static_cast<double>(values);
    }
    void prepare() const { cache.set(rounded<X>(cache_up_to(s.first))); }
    void run(AttentionCached<X> f) const {
        f(out.data(), cache.data(), qkv.data(), s.B, s.T, s.first, s.capacity, {s.NH, s.NH, s.HS}, nullptr);
    }
    double worst() const {
        Floats expected(static_cast<size_t>(s.B * s.T * C)), lse(static_cast<size_t>(s.B * s.T * s.NH));
        operations().attention_forward(expected.data(), lse.data(), qkv_of_all.data(), s.B, positions,
                                       {s.NH, s.NH, s.HS}, s.first, positions);
        return std::max(worst_rounded_error(out.host(), expected, 1e-5),
                        worst_error(floats(cache.host()), cache_up_to(positions), 1e-30));
    }
};

}  // namespace lnfree::cuda::lab

int main(int argc, char** argv) {
    using namespace lnfree::cuda;
    return lab::laboratory_main<lab::AttentionCachedProblem<float>, lab::AttentionCachedProblem<bf16>>(
        argc, argv, "attention_cached");
}
