// Encodes many texts in parallel. A free thread takes the next task, which is a few neighbouring texts. The calling
// thread hands over the results meanwhile.
#include <algorithm>
#include <atomic>
#include <exception>
#include <stdexcept>

#include "base/check.h"
#include "base/interrupt.h"
#include "base/parallel.h"
#include "tokenizer/tokenizer.h"

namespace soma {
namespace {

constexpr size_t kTaskBytes = size_t{1} << 14;      // a task ends with the text that reaches it
constexpr size_t kTogetherBytes = size_t{1} << 20;  // longer texts are encoded alone, slice by slice
constexpr size_t kRoundTasks = 1024;                // between two checks for an interrupt
constexpr size_t kTakenTasks = 8;  // the fewest to hand over while others run: `take` may wait for a lock

struct Task {
  EncodedTexts part;
  std::exception_ptr failure;
  std::atomic<bool> done{false};
};

// The first text of each task, then the number of texts.
std::vector<size_t> cut_into_tasks(const std::vector<std::string_view>& texts) {
  std::vector<size_t> starts;
  size_t bytes = kTaskBytes;
  for (size_t i = 0; i < texts.size(); ++i) {
    if (bytes >= kTaskBytes) {
      starts.push_back(i);
      bytes = 0;
    }
    bytes += texts[i].size() + 64;
  }
  starts.push_back(texts.size());
  return starts;
}

}  // namespace

void Tokenizer::encode_texts(const std::string_view* texts, size_t count, EncodedTexts& out) const {
  Encoding encoding;
  encoding.ids.swap(out.ids);
  for (size_t i = 0; i < count; ++i) {
    encode_into(texts[i], {}, false, false, encoding);
    out.ends.push_back(encoding.ids.size());
  }
  out.ids.swap(encoding.ids);
}

void Tokenizer::encode_batch(const std::vector<std::string_view>& texts, const std::vector<TokenId>& allowed_special,
                             size_t first, const Take& take) const {
  const std::vector<size_t> starts = cut_into_tasks(texts);
  const bool alone = texts.size() == 1;  // a text that may be long: this thread can check for interrupts
  const auto encode_task = [&](size_t number, Task& task) {
    EncodedTexts& part = task.part;
    part.first = starts[number];
    const std::span some(texts.data() + starts[number], starts[number + 1] - starts[number]);
    try {
      if (allowed_special.empty() && !alone && some.back().size() <= kTogetherBytes) {
        encode_texts(some.data(), some.size(), part);
      } else {
        Encoding encoding;
        for (const std::string_view text : some) {
          encode_into(text, allowed_special, false, alone, encoding);
          part.ends.push_back(encoding.ids.size());
        }
        part.ids.swap(encoding.ids);
      }
    } catch (...) {
      task.failure = std::current_exception();
    }
    task.done.store(true, std::memory_order_release);
  };

  const size_t task_count = starts.size() - 1;
  for (size_t round = 0; round < task_count; round += kRoundTasks) {
    std::vector<Task> tasks(std::min(kRoundTasks, task_count - round));
    std::atomic<size_t> next{0};
    size_t taken = 0;
    std::exception_ptr take_failure;
    const auto take_done = [&](size_t least) {
      size_t end = taken;
      while (end < tasks.size() && tasks[end].done.load(std::memory_order_acquire) && !tasks[end].failure) ++end;
      if (take_failure || end - taken < least) return;
      try {
        std::vector<EncodedTexts> parts;
        for (; taken < end; ++taken) parts.push_back(std::move(tasks[taken].part));
        take(parts);
      } catch (...) {
        take_failure = std::current_exception();
      }
    };
    parallel_region(static_cast<int64_t>(tasks.size()), [&](const ParallelRegion& region) {
      for (size_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < tasks.size();) {
        encode_task(round + i, tasks[i]);
        if (region.rank == 0 && region.size > 1) take_done(kTakenTasks);
      }
    });
    take_done(1);
    if (take_failure) std::rethrow_exception(take_failure);
    if (taken < tasks.size()) {
      const EncodedTexts& part = tasks[taken].part;
      try {
        std::rethrow_exception(tasks[taken].failure);
      } catch (const std::invalid_argument& error) {
        fail("texts[", first + part.first + part.ends.size(), "]: ", error.what());
      }
    }
    check_interrupt();
  }
}

}  // namespace soma
