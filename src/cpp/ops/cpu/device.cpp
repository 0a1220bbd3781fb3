// The processor as a device: threads of one pool, ops that return when they are done.
#include "ops/device.h"

#include "base/parallel.h"
#include "ops/cpu/cpu_ops.h"
#include "ops/cpu/decode_ops.h"

namespace soma {
namespace {

class CpuDevice final : public Device {
 public:
  std::string name() const override { return "cpu"; }
  Memory& memory() override { return host_memory(); }
  std::unique_ptr<Ops> make_ops(Precision precision) override { return std::make_unique<CpuOps>(precision); }
  std::unique_ptr<Decoding> make_decoding() override { return make_cpu_decoding(); }
  int64_t splits() const override { return call_threads(); }
  void finish() override {}

 protected:
  void run_call(void (*body)(void* context), void* context) override { detail::run_with_pool(body, context); }
};

CpuDevice device;  // no local static, whose lock a fork could leave locked

}  // namespace

Device& cpu_device() { return device; }

}  // namespace soma
