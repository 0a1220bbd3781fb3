// The CUDA graphs of a GPU: calls whose launches come again.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <list>
#include <mutex>

#include "ops/cuda/recording.h"

namespace soma::cuda {

class Graphs {
 public:
  Graphs();  // for the GPU of this thread; SOMA_CUDA_GRAPHS=0 turns them off

  // Runs body(context), whose launches are for `stream`: at once for the first time, and captured when the same come
  // again. Other buffers, shapes or arguments are other launches. What body uploads is uploaded before.
  void run(const void* owner, cudaStream_t stream, void (*body)(void* context), void* context);
  // Frees the graphs of an owner, whose memory they use.
  void forget(const void* owner) noexcept;

 private:
  struct Graph {
    const void* owner;
    uint64_t key;
    cudaGraphExec_t ready;  // null: seen once
  };

  // Null: there is no memory for the graph.
  cudaGraphExec_t make(Recording& recording, cudaStream_t stream, void (*body)(void* context), void* context);
  void launch(const Graph& graph, const Recording& recording, cudaStream_t stream);

  bool on_;
  char* values_ = nullptr;
  cudaStream_t capture_ = nullptr;
  std::mutex lock_;
  std::list<Graph> known_;  // the last used one first
};

}  // namespace soma::cuda
