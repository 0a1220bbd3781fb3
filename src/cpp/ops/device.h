// A device computes and has memory of its own. A model lives on one. What is asked of a device is done in order; only a
// read of its memory must wait for it.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <type_traits>

#include "base/interrupt.h"
#include "base/memory.h"
#include "ops/decode_ops.h"
#include "ops/ops.h"

namespace soma {

class Repeats;

class Device {
 public:
  virtual ~Device() = default;

  virtual std::string name() const = 0;
  virtual Memory& memory() = 0;
  virtual std::unique_ptr<Ops> make_ops(Precision precision) = 0;
  virtual std::unique_ptr<Decoding> make_decoding() = 0;
  // The most ops that may run side by side in a call, each from an Ops of its own: threads of the processor, or 1.
  virtual int64_t splits() const = 0;
  // Bytes that can still be taken of a memory of its own; -1: it is the host's.
  virtual int64_t free_bytes() { return -1; }
  // Returns when all that was asked is done. Throws what failed.
  virtual void finish() = 0;

  // Runs f, which asks for many ops one after another. f may throw.
  template <typename F>
  auto run(F&& f) -> decltype(f()) {
    using Result = decltype(f());
    if constexpr (std::is_void_v<Result>) {
      using Function = std::remove_reference_t<F>;
      run_call([](void* context) { (*static_cast<Function*>(context))(); },
               const_cast<void*>(static_cast<const void*>(&f)));
    } else {
      Result result{};
      run([&] { result = f(); });
      return result;
    }
  }

 protected:
  friend class Repeats;
  virtual void run_call(void (*body)(void* context), void* context) = 0;
  virtual bool records() const { return false; }
  virtual void repeat_call(const Repeats& owner, void (*body)(void* context), void* context) {
    (void)owner;
    body(context);
  }
  virtual void forget(const Repeats& owner) noexcept { (void)owner; }
};

// Calls that come again. What a device records of them lives as long as this, which the owner of their memory has.
class Repeats {
 public:
  explicit Repeats(Device& device) : device_(device) {}
  ~Repeats() { device_.forget(*this); }
  Repeats(const Repeats&) = delete;
  Repeats& operator=(const Repeats&) = delete;

  // Runs f, which asks for ops and reads nothing. A device that records may run it twice, the first time without
  // computing, and may replay what was asked for before. A signal waits for its end: the handler may ask for ops too.
  template <typename F>
  void run(F&& f) {
    std::optional<Uninterrupted> whole;
    if (device_.records()) whole.emplace();
    using Function = std::remove_reference_t<F>;
    device_.repeat_call(
        *this, [](void* context) { (*static_cast<Function*>(context))(); },
        const_cast<void*>(static_cast<const void*>(&f)));
  }

 private:
  Device& device_;
};

// The processor. Its memory is that of the host.
Device& cpu_device();

// Throws std::invalid_argument for an unknown name.
Device& find_device(std::string_view name);

}  // namespace soma
