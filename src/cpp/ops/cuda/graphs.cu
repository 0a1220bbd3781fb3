// Capture and replay.
#include "ops/cuda/graphs.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <string_view>

#include "ops/cuda/check.h"
#include "ops/cuda/rows.h"

namespace soma::cuda {
namespace {

constexpr std::size_t kMostKnown = 64;
constexpr int64_t kMostWords = 448;  // of a launch, whose arguments have 4 KB

struct Words {
  uint64_t word[kMostWords];
};

// As a launch and no copy, which would wait for the host's memory.
__global__ void __launch_bounds__(kThreads) store_words(uint64_t* to, Words words, int64_t count) {
  for (int64_t i = threadIdx.x; i < count; i += kThreads) to[i] = words.word[i];
}

}  // namespace

Graphs::Graphs() {
  const char* const wanted = std::getenv("SOMA_CUDA_GRAPHS");
  on_ = wanted == nullptr || std::string_view(wanted) != "0";
  if (!on_) return;
  void* values = nullptr;
  check(cudaMalloc(&values, Recording::kMostBytes));
  values_ = static_cast<char*>(values);
  check(cudaStreamCreateWithFlags(&capture_, cudaStreamNonBlocking));  // others may use the stream that waits for all
}

void Graphs::run(const void* owner, cudaStream_t stream, void (*body)(void* context), void* context) {
  if (!on_ || Recording::current() != nullptr) return body(context);
  Recording recording(values_, capture_);
  recording.look(body, context);
  if (recording.fits()) {
    const std::lock_guard<std::mutex> guard(lock_);  // nobody else stores values before the graph is launched
    const auto found = std::find_if(known_.begin(), known_.end(),
                                    [&](const Graph& g) { return g.owner == owner && g.key == recording.key(); });
    if (found != known_.end()) {
      if (found->ready == nullptr) found->ready = make(recording, stream, body, context);
      if (found->ready == nullptr) return body(context);
      known_.splice(known_.begin(), known_, found);
      return launch(known_.front(), recording, stream);
    }
    known_.push_front({owner, recording.key(), nullptr});
    if (known_.size() > kMostKnown) {
      if (known_.back().ready != nullptr) check(cudaGraphExecDestroy(known_.back().ready));
      known_.pop_back();
    }
  }
  body(context);
}

void Graphs::forget(const void* owner) noexcept {
  const std::lock_guard<std::mutex> guard(lock_);
  known_.remove_if([&](const Graph& g) {
    if (g.owner == owner && g.ready != nullptr) cudaGraphExecDestroy(g.ready);  // one under way is freed at its end
    return g.owner == owner;
  });
}

cudaGraphExec_t Graphs::make(Recording& recording, cudaStream_t stream, void (*body)(void* context), void* context) {
  cudaGraph_t graph = nullptr;
  // Other threads go on to allocate and to launch.
  check(cudaStreamBeginCapture(capture_, cudaStreamCaptureModeThreadLocal));
  try {
    recording.capture(body, context);
  } catch (...) {
    if (cudaStreamEndCapture(capture_, &graph) == cudaSuccess) cudaGraphDestroy(graph);
    throw;
  }
  check(cudaStreamEndCapture(capture_, &graph));
  cudaGraphExec_t ready = nullptr;
  cudaError_t error = cudaGraphInstantiate(&ready, graph, 0);
  check(cudaGraphDestroy(graph));
  if (error == cudaSuccess) error = cudaGraphUpload(ready, stream);  // takes the memory that the first launch would
  if (error == cudaErrorMemoryAllocation) {
    cudaGetLastError();  // forgets it: without a graph the call may fit
    if (ready != nullptr) check(cudaGraphExecDestroy(ready));
    return nullptr;
  }
  check(error);
  return ready;
}

void Graphs::launch(const Graph& graph, const Recording& recording, cudaStream_t stream) {
  const std::vector<char>& kept = recording.kept();
  auto* const to = reinterpret_cast<uint64_t*>(values_);
  const auto all = static_cast<int64_t>(kept.size() / sizeof(uint64_t));
  for (int64_t first = 0; first < all; first += kMostWords) {
    const int64_t count = std::min(kMostWords, all - first);
    Words words{};
    std::memcpy(&words, kept.data() + first * sizeof(uint64_t), static_cast<std::size_t>(count) * sizeof(uint64_t));
    Kernel{store_words, dim3(1), kThreads, stream}(to + first, words, count);
  }
  check(cudaGraphLaunch(graph.ready, stream));
}

}  // namespace soma::cuda
