// Device memory, and streams of launches and copies that wait until the host synchronises.
#include <sys/mman.h>

#include <algorithm>
#include <deque>
#include <functional>
#include <map>
#include <mutex>
#include <utility>

#include "cuda_runtime.h"
#include "machine.h"

namespace emulation {

namespace {

constexpr std::size_t kAddresses = std::size_t{64} << 30;  // all that a process can allocate, since none is used twice
constexpr std::size_t kPage = 4096, kAlignment = 256;

std::size_t round_up(std::size_t a, std::size_t b) { return (a + b - 1) / b * b; }

template <typename T>
T* reserve(std::size_t count, int protection) {
  void* const p = mmap(nullptr, count * sizeof(T), protection, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (p == MAP_FAILED) fail("no addresses for device memory");
  return static_cast<T*>(p);
}

struct Device {
  char* const begin = reserve<char>(kAddresses, PROT_NONE);
  std::size_t used = 0;  // of the addresses
  std::size_t total = std::size_t{4} << 30, taken = 0;
  std::map<uintptr_t, Allocation> allocations;  // by data
  bool open = false;
  std::map<const void*, int> dynamic_bytes;  // of kernels, as cudaFuncSetAttribute said
  cudaError_t error = cudaSuccess;
  int count = 1, major = 9, minor = 0, driver = CUDART_VERSION;
  bool fails = false;
};
Device& device() {
  static Device* const one = new Device;
  return *one;
}

// A page boundary follows the memory within kAlignment bytes, and no page after it is ever open.
std::pair<uintptr_t, std::size_t> pages_of(const Allocation& a) {
  const uintptr_t begin = a.data / kPage * kPage;
  return {begin, round_up(a.data + a.bytes, kPage) - begin};
}

void protect(const Allocation& a, bool open) {
  const auto [begin, bytes] = pages_of(a);
  mprotect(reinterpret_cast<void*>(begin), bytes, open ? PROT_READ | PROT_WRITE : PROT_NONE);
}

cudaError_t result(cudaError_t error) {
  if (error != cudaSuccess) device().error = error;
  return error;
}

}  // namespace

struct Event {
  Stream* stream = nullptr;
  uint64_t position = 0;  // the tasks of the stream before it
};

struct Task {
  std::function<void()> run;
  Stream* other = nullptr;  // must have run `position` tasks first
  uint64_t position = 0;
};

struct Stream {
  std::deque<Task> tasks;
  uint64_t ran = 0, running_to = 0;
  Graph* capture = nullptr;
};

// Tasks with the arguments that they were captured with.
struct Graph {
  std::vector<Task> tasks;
};

namespace {

std::recursive_mutex mutex;
GraphCounts counts{};
Stream default_stream;
std::vector<Stream*> streams{&default_stream};

Stream& stream_of(Stream* stream) { return stream == nullptr ? default_stream : *stream; }

// Runs the tasks of a stream up to a position, and what they wait for in others. Nothing else: a launch that nobody
// ordered before may come as late.
void run_to(Stream& stream, uint64_t position) {
  while (stream.ran < position && !stream.tasks.empty()) {
    const Task task = std::move(stream.tasks.front());
    stream.tasks.pop_front();
    if (task.other != nullptr) run_to(*task.other, task.position);
    if (task.run) task.run();
    ++stream.ran;
  }
}

void run_all(Stream& stream) {
  open_memory(true);
  run_to(stream, stream.ran + stream.tasks.size());
  open_memory(false);
}

void run_all() {
  std::vector<Stream*> order = streams;
  if (turns.order == Order::kBackward) std::reverse(order.begin(), order.end());
  if (turns.order == Order::kShuffled) std::shuffle(order.begin(), order.end(), turns.random);
  for (Stream* const stream : order) run_all(*stream);
}

void add(Stream* stream, Task task) {
  Stream& s = stream_of(stream);
  s.capture != nullptr ? s.capture->tasks.push_back(std::move(task)) : s.tasks.push_back(std::move(task));
}

void expect_inside(const void* p, std::size_t bytes, const char* does) {
  const auto address = reinterpret_cast<uintptr_t>(p);
  const Allocation* const a = find_allocation(address);
  if (a == nullptr || address < a->data || address + bytes > a->data + a->bytes) {
    fail(std::string("a copy ") + does + " outside device memory: " + std::to_string(bytes) + " bytes");
  }
  if (!a->live) fail(std::string("a copy ") + does + " device memory that was released");
}

void copy(void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind) {
  if (bytes == 0) return;
  if (kind != cudaMemcpyHostToDevice) expect_inside(from, bytes, "reads");
  if (kind != cudaMemcpyDeviceToHost) {
    expect_inside(to, bytes, "writes");
    mark_written(reinterpret_cast<uintptr_t>(to), bytes);
  }
  std::memmove(to, from, bytes);
}

}  // namespace

bool is_device(uintptr_t address) { return address - reinterpret_cast<uintptr_t>(device().begin) < kAddresses; }

Allocation* find_allocation(uintptr_t address) {
  static Allocation* last = nullptr;
  if (last != nullptr && address - last->data < last->bytes) return last;
  auto& all = device().allocations;
  const auto after = all.upper_bound(address);
  if (!is_device(address) || after == all.begin()) return nullptr;
  return last = &std::prev(after)->second;
}

void open_memory(bool open) {
  if (device().open == open) return;
  device().open = open;
  for (const auto& [data, a] : device().allocations) {
    if (a.live) protect(a, open);
  }
}

void mark_written(uintptr_t data, std::size_t bytes) {
  const Allocation* const a = find_allocation(data);
  const std::size_t first = (data - a->data) / kGranule, end = (data - a->data + bytes + kGranule - 1) / kGranule;
  std::memset(a->written + first, 1, end - first);
}

void set_order(Order order, uint64_t seed) {
  turns.order = order;
  turns.random.seed(seed);
}

void set_memory(std::size_t bytes) { device().total = bytes; }

std::size_t taken_memory() { return device().taken; }

void set_machine(int devices, int major, int minor, int driver) {
  device().count = devices;
  device().major = major;
  device().minor = minor;
  device().driver = driver;
}

GraphCounts graph_counts() { return counts; }

void fail_next() { device().fails = true; }

bool enqueue(Stream* stream, Launch launch) {
  const std::lock_guard lock(mutex);
  const Dim grid = launch.grid;
  const auto allowed = device().dynamic_bytes.find(launch.kernel);
  const std::size_t most =
      allowed == device().dynamic_bytes.end() ? kSharedBytes : static_cast<std::size_t>(allowed->second);
  if (grid.x < 1 || grid.x > 0x7fffffffu || grid.y < 1 || grid.y > 65535 || grid.z < 1 || grid.z > 65535 ||
      launch.threads < 1 || launch.threads > kMostThreads || launch.dynamic_bytes > std::min(most, kMostSharedBytes)) {
    result(cudaErrorInvalidConfiguration);
    return false;
  }
  add(stream, {.run = [launch = std::move(launch)] { run_launch(launch); }});
  return true;
}

}  // namespace emulation

using emulation::device;

const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "no error";
    case cudaErrorMemoryAllocation:
      return "out of memory";
    case cudaErrorInvalidConfiguration:
      return "invalid configuration argument";
    case cudaErrorIllegalAddress:
      return "an illegal memory access was encountered";
    default:
      return "invalid argument";
  }
}

cudaError_t cudaGetLastError() {
  const cudaError_t error = device().error;
  device().error = cudaSuccess;
  return error;
}

cudaError_t cudaDriverGetVersion(int* version) {
  *version = device().driver;
  return cudaSuccess;
}

cudaError_t cudaRuntimeGetVersion(int* version) {
  *version = CUDART_VERSION;
  return cudaSuccess;
}

cudaError_t cudaGetDeviceCount(int* count) {
  *count = 0;
  if (device().driver < CUDART_VERSION) return emulation::result(cudaErrorInsufficientDriver);
  *count = device().count;
  return *count > 0 ? cudaSuccess : emulation::result(cudaErrorNoDevice);
}

cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int number) {
  *properties = {"Emulation", device().total, device().major, device().minor};
  return cudaSetDevice(number);
}

// All devices are one.
cudaError_t cudaSetDevice(int number) {
  return number >= 0 && number < device().count ? cudaSuccess : emulation::result(cudaErrorInvalidValue);
}

cudaError_t cudaMalloc(void** memory, std::size_t bytes) {
  using namespace emulation;
  const std::lock_guard lock(mutex);
  Device& d = device();
  const std::size_t size = round_up(std::max<std::size_t>(bytes, 1), kAlignment);
  if (d.taken + size > d.total || d.used + size + 2 * kPage > kAddresses) return result(cudaErrorMemoryAllocation);
  const std::size_t pages = round_up(size, kPage);
  Allocation a{.data = reinterpret_cast<uintptr_t>(d.begin) + d.used + pages - size,
               .bytes = bytes,
               .cells = reserve<Cell>(size / kGranule, PROT_READ | PROT_WRITE),
               .written = reserve<uint8_t>(size / kGranule, PROT_READ | PROT_WRITE),
               .live = true};
  d.used += pages + kPage;
  d.taken += size;
  protect(a, true);
  std::memset(reinterpret_cast<void*>(a.data), 0xff, size);  // NaN
  protect(a, d.open);
  d.allocations.emplace(a.data, a);
  *memory = reinterpret_cast<void*>(a.data);
  return cudaSuccess;
}

// As on a GPU, all that was launched before has run first.
cudaError_t cudaFree(void* memory) {
  using namespace emulation;
  if (memory == nullptr) return cudaSuccess;
  const std::lock_guard lock(mutex);
  run_all();
  const auto found = device().allocations.find(reinterpret_cast<uintptr_t>(memory));
  if (found == device().allocations.end() || !found->second.live) {
    fail("memory is released that is not the device's, or was released before");
  }
  Allocation& a = found->second;
  const std::size_t size = round_up(std::max<std::size_t>(a.bytes, 1), kAlignment);
  const auto [begin, bytes] = pages_of(a);
  madvise(reinterpret_cast<void*>(begin), bytes, MADV_DONTNEED);
  munmap(a.cells, size / kGranule * sizeof(Cell));
  munmap(a.written, size / kGranule);
  a.live = false;
  device().taken -= size;
  return cudaSuccess;
}

cudaError_t cudaMemGetInfo(std::size_t* free, std::size_t* total) {
  *total = device().total;
  *free = device().total - device().taken;
  return cudaSuccess;
}

cudaError_t cudaMemcpy(void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind) {
  using namespace emulation;
  const std::lock_guard lock(mutex);
  run_all();
  open_memory(true);
  copy(to, from, bytes, kind);
  open_memory(false);
  return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind, cudaStream_t stream) {
  const std::lock_guard lock(emulation::mutex);
  emulation::add(stream, {.run = [=] { emulation::copy(to, from, bytes, kind); }});
  return cudaSuccess;
}

cudaError_t cudaMemcpy2DAsync(void* to, std::size_t to_pitch, const void* from, std::size_t from_pitch,
                              std::size_t width, std::size_t height, cudaMemcpyKind kind, cudaStream_t stream) {
  for (std::size_t r = 0; r < height; ++r) {
    cudaMemcpyAsync(static_cast<char*>(to) + r * to_pitch, static_cast<const char*>(from) + r * from_pitch, width, kind,
                    stream);
  }
  return cudaSuccess;
}

cudaError_t cudaMemsetAsync(void* to, int value, std::size_t bytes, cudaStream_t stream) {
  using namespace emulation;
  const std::lock_guard lock(mutex);
  add(stream, {.run = [=] {
        if (bytes == 0) return;
        expect_inside(to, bytes, "writes");
        mark_written(reinterpret_cast<uintptr_t>(to), bytes);
        std::memset(to, value, bytes);
      }});
  return cudaSuccess;
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
  const std::lock_guard lock(emulation::mutex);
  emulation::streams.push_back(*stream = new emulation::Stream);
  return cudaSuccess;
}

// The stream stays as an empty one, since events may still name it.
cudaError_t cudaStreamDestroy(cudaStream_t stream) { return cudaStreamSynchronize(stream); }

cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  const std::lock_guard lock(emulation::mutex);
  if (emulation::stream_of(stream).capture != nullptr) return emulation::result(cudaErrorStreamCaptureUnsupported);
  emulation::run_all(emulation::stream_of(stream));
  return std::exchange(device().fails, false) ? emulation::result(cudaErrorIllegalAddress) : cudaSuccess;
}

cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
  const std::lock_guard lock(emulation::mutex);
  if (event->stream != nullptr)
    emulation::add(stream, {.run = {}, .other = event->stream, .position = event->position});
  return cudaSuccess;
}

cudaError_t cudaEventCreate(cudaEvent_t* event) {
  *event = new emulation::Event;
  return cudaSuccess;
}

cudaError_t cudaEventDestroy(cudaEvent_t event) {
  delete event;
  return cudaSuccess;
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  const std::lock_guard lock(emulation::mutex);
  emulation::Stream& s = emulation::stream_of(stream);
  *event = {&s, s.ran + s.tasks.size()};
  return cudaSuccess;
}

cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  using namespace emulation;
  const std::lock_guard lock(mutex);
  if (event->stream == nullptr) return cudaSuccess;
  open_memory(true);
  run_to(*event->stream, event->position);
  open_memory(false);
  return cudaSuccess;
}

cudaError_t cudaDeviceSynchronize() {
  const std::lock_guard lock(emulation::mutex);
  emulation::run_all();
  return cudaSuccess;
}

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) {
  const std::lock_guard lock(emulation::mutex);
  emulation::Stream& s = emulation::stream_of(stream);
  if (s.capture != nullptr || &s == &emulation::default_stream) {
    return emulation::result(cudaErrorStreamCaptureUnsupported);
  }
  s.capture = new emulation::Graph;
  return cudaSuccess;
}

cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  const std::lock_guard lock(emulation::mutex);
  *graph = std::exchange(stream->capture, nullptr);
  return *graph != nullptr ? cudaSuccess : emulation::result(cudaErrorStreamCaptureUnsupported);
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t* ready, cudaGraph_t graph, unsigned long long) {
  ++emulation::counts.made;
  ++emulation::counts.held;
  *ready = new emulation::Graph(*graph);
  return cudaSuccess;
}

// A graph lies in memory of the device, which is only looked at here: it is not counted.
cudaError_t cudaGraphUpload(cudaGraphExec_t ready, cudaStream_t) {
  const std::lock_guard lock(emulation::mutex);
  const std::size_t bytes = ready->tasks.size() * emulation::kGraphNodeBytes;
  return device().taken + bytes > device().total ? emulation::result(cudaErrorMemoryAllocation) : cudaSuccess;
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t ready, cudaStream_t stream) {
  const std::lock_guard lock(emulation::mutex);
  ++emulation::counts.launched;
  for (const emulation::Task& task : ready->tasks) emulation::add(stream, task);
  return cudaSuccess;
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  delete graph;
  return cudaSuccess;
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t ready) { return --emulation::counts.held, cudaGraphDestroy(ready); }

cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute, int value) {
  if (value < 0 || static_cast<std::size_t>(value) > emulation::kMostSharedBytes) {
    return emulation::result(cudaErrorInvalidValue);
  }
  device().dynamic_bytes[kernel] = value;
  return cudaSuccess;
}
