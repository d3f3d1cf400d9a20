// Attention by cuDNN: describes our tensors to it, keeps its plans, runs them. Compiled by the C++ compiler, not nvcc.
//
// NOT YET RUN, see cudnn_attention.h. What is asked of cuDNN is documented in its "Attention" chapter
// (docs.nvidia.com/deeplearning/cudnn, Scaled Dot Product Attention); its frontend is a library of headers
// (github.com/NVIDIA/cudnn-frontend) that turns such a description into calls of libcudnn.
#include <array>
#include <cmath>
#include <map>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

// Neither its log nor its serialisation is used; both take long to compile.
#define NV_CUDNN_FRONTEND_DISABLE_LOGGING
#define CUDNN_FRONTEND_SKIP_JSON_LIB
#include <cuda_runtime_api.h>
#include <cudnn_frontend.h>

#include "../../data/error.h"
#include "cudnn_attention.h"

namespace lnfree::cuda {
namespace {

namespace fe = cudnn_frontend;
using Tensor = std::shared_ptr<fe::graph::Tensor_attributes>;

struct Shape {
    int64_t B, T, C, NH;

    int64_t HS() const { return C / NH; }
    std::array<int64_t, 4> key() const { return {B, T, C, NH}; }
    std::string text() const {
        return std::to_string(B) + " sequences of " + std::to_string(T) + " positions, " + std::to_string(NH) +
               " heads of " + std::to_string(HS());
    }
};

[[noreturn]] void fail(const std::string& doing, const std::string& why) {
    throw RunFailure("cuDNN: " + doing + ": " + why + "; use --attention flash");
}
void require(fe::error_t status, const std::string& doing) {
    if (status.is_bad()) fail(doing, status.get_message());
}
void require(cudnnStatus_t status, const std::string& doing) {
    if (status != CUDNN_STATUS_SUCCESS) fail(doing, cudnnGetErrorString(status));
}

// The names by which a graph's tensors are found again when it is run.
enum Name : int64_t { kQ = 1, kK, kV, kOut, kLse, kDout, kDQ, kDK, kDV };

// One cuDNN for the process; like the engine's stream, for one thread.
class Cudnn {
  public:
    Cudnn() { require(cudnnCreate(&handle_), "cannot be started"); }
    Cudnn(const Cudnn&) = delete;
    Cudnn& operator=(const Cudnn&) = delete;
    ~Cudnn() {
        cudaFree(workspace_);
        cudnnDestroy(handle_);
    }
    cudnnHandle_t handle() const { return handle_; }

    // What cuDNN's kernels want besides their operands; it grows and is shared, since `stream` runs one after another.
    void* workspace(int64_t bytes, cudaStream_t stream) {
        if (bytes <= bytes_) return workspace_;
        cudaStreamSynchronize(stream);
        cudaFree(workspace_);
        workspace_ = nullptr;
        bytes_ = 0;
        if (cudaMalloc(&workspace_, static_cast<size_t>(bytes)) != cudaSuccess) {
            cudaGetLastError();  // the failure has been dealt with
            fail("workspace", "the GPU has no room for " + std::to_string(bytes >> 20) + " MiB");
        }
        bytes_ = bytes;
        return workspace_;
    }

  private:
    cudnnHandle_t handle_ = nullptr;
    void* workspace_ = nullptr;
    int64_t bytes_ = 0;
};
Cudnn& cudnn() {
    static Cudnn the_cudnn;
    return the_cudnn;
}

// A description, compiled for one shape.
class Plan {
  public:
    explicit Plan(const Shape& shape) : shape_(shape) {
        graph_.set_io_data_type(fe::DataType_t::BFLOAT16)
            .set_intermediate_data_type(fe::DataType_t::FLOAT)
            .set_compute_data_type(fe::DataType_t::FLOAT);
    }

    // One head's vectors, `stride` values from one position to the next: a view of (B,T,stride) as (B,NH,T,HS).
    Tensor vectors(Name name, int64_t stride) {
        return graph_.tensor(fe::graph::Tensor_attributes().set_uid(name).set_dim(dim()).set_stride(strides(stride)));
    }
    void output_vectors(const Tensor& tensor, Name name, int64_t stride) {
        tensor->set_output(true).set_uid(name).set_dim(dim()).set_stride(strides(stride));
    }
    // A float per position and head, (B,NH,T) as (B,NH,T,1).
    Tensor rows(Name name) { return graph_.tensor(as_rows(fe::graph::Tensor_attributes(), name)); }
    void output_rows(const Tensor& tensor, Name name) {
        tensor->set_output(true);
        as_rows(*tensor, name);
    }

    fe::graph::Graph& graph() { return graph_; }
    fe::error_t build() { return graph_.build(cudnn().handle(), {fe::HeurMode_t::A}); }

    void run(std::unordered_map<int64_t, void*> tensors, cudaStream_t stream) {
        int64_t bytes = 0;
        require(graph_.get_workspace_size(bytes), shape_.text());
        require(cudnnSetStream(cudnn().handle(), stream), "a stream");
        require(graph_.execute(cudnn().handle(), tensors, cudnn().workspace(bytes, stream)), shape_.text());
    }

  private:
    Shape shape_;
    fe::graph::Graph graph_;

    std::vector<int64_t> dim() const { return {shape_.B, shape_.NH, shape_.T, shape_.HS()}; }
    std::vector<int64_t> strides(int64_t stride) const { return {shape_.T * stride, shape_.HS(), stride, 1}; }
    fe::graph::Tensor_attributes& as_rows(fe::graph::Tensor_attributes& tensor, Name name) const {
        return tensor.set_uid(name)
            .set_dim({shape_.B, shape_.NH, shape_.T, 1})
            .set_stride({shape_.NH * shape_.T, shape_.T, 1, 1})
            .set_data_type(fe::DataType_t::FLOAT);
    }
    fe::graph::Tensor_attributes as_rows(fe::graph::Tensor_attributes&& tensor, Name name) const {
        return as_rows(tensor, name);
    }
};

// What forward and backward have in common: position t sees positions 0 to t, and scores are divided by sqrt(HS).
template <class Attributes>
Attributes causal(Attributes attributes, const Shape& shape) {
    attributes.set_attn_scale(static_cast<float>(1.0 / std::sqrt(static_cast<double>(shape.HS()))))
        .set_diagonal_alignment(fe::DiagonalAlignment_t::TOP_LEFT)
        .set_diagonal_band_right_bound(0);
    return attributes;
}

std::unique_ptr<Plan> forward_plan(const Shape& shape) {
    auto plan = std::make_unique<Plan>(shape);
    const int64_t C = shape.C;
    const auto attributes = causal(fe::graph::SDPA_attributes().set_name("forward"), shape).set_generate_stats(true);
    const auto [out, lse] =
        plan->graph().sdpa(plan->vectors(kQ, 3 * C), plan->vectors(kK, 3 * C), plan->vectors(kV, 3 * C), attributes);
    plan->output_vectors(out, kOut, C);
    plan->output_rows(lse, kLse);
    require(plan->build(), "forward, " + shape.text());
    return plan;
}

std::unique_ptr<Plan> backward_plan(const Shape& shape) {
    const int64_t C = shape.C;
    std::unique_ptr<Plan> plan;
    fe::error_t status;
    for (const bool deterministic : {true, false}) {
        plan = std::make_unique<Plan>(shape);
        const auto attributes = causal(fe::graph::SDPA_backward_attributes().set_name("backward"), shape)
                                    .set_deterministic_algorithm(deterministic);
        const auto [dq, dk, dv] =
            plan->graph().sdpa_backward(plan->vectors(kQ, 3 * C), plan->vectors(kK, 3 * C), plan->vectors(kV, 3 * C),
                                        plan->vectors(kOut, C), plan->vectors(kDout, C), plan->rows(kLse), attributes);
        plan->output_vectors(dq, kDQ, 3 * C);
        plan->output_vectors(dk, kDK, 3 * C);
        plan->output_vectors(dv, kDV, 3 * C);
        status = plan->build();
        if (status.is_good()) return plan;
    }
    require(status, "backward, " + shape.text());
    return plan;
}

// The plan for a shape, made when it is first asked for.
Plan& plan_for(const Shape& shape, std::unique_ptr<Plan> (*make)(const Shape&),
               std::map<std::array<int64_t, 4>, std::unique_ptr<Plan>>& plans) {
    cudnn();  // is made before the plans, and so outlives them
    std::unique_ptr<Plan>& plan = plans[shape.key()];
    if (plan == nullptr) plan = make(shape);
    return *plan;
}

// cuDNN takes pointers to what it only reads without const.
void* operand(const void* p) {
    return const_cast<void*>(p);
}
// bf16 numbers of two bytes, `n` of them further; what a bf16 is made of is no business of this file.
void* further(const void* p, int64_t n) {
    return static_cast<char*>(operand(p)) + 2 * n;
}

}  // namespace

void cudnn_attention_forward(bf16* out, float* lse, const bf16* qkv, int64_t B, int64_t T, int64_t C, int64_t NH,
                             cudaStream_t stream) {
    static std::map<std::array<int64_t, 4>, std::unique_ptr<Plan>> plans;
    plan_for({B, T, C, NH}, forward_plan, plans)
        .run({{kQ, operand(qkv)}, {kK, further(qkv, C)}, {kV, further(qkv, 2 * C)}, {kOut, out}, {kLse, lse}}, stream);
}

void cudnn_attention_backward(bf16* dqkv, const bf16* dout, const bf16* qkv, const bf16* out, const float* lse,
                              int64_t B, int64_t T, int64_t C, int64_t NH, cudaStream_t stream) {
    static std::map<std::array<int64_t, 4>, std::unique_ptr<Plan>> plans;
    plan_for({B, T, C, NH}, backward_plan, plans)
        .run({{kQ, operand(qkv)},
              {kK, further(qkv, C)},
              {kV, further(qkv, 2 * C)},
              {kOut, operand(out)},
              {kLse, operand(lse)},
              {kDout, operand(dout)},
              {kDQ, dqkv},
              {kDK, further(dqkv, C)},
              {kDV, further(dqkv, 2 * C)}},
             stream);
}

}  // namespace lnfree::cuda
