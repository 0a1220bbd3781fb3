// Failures: what was done, by which thread of which kernel, at which line. Then the process ends.
#include <dlfcn.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>

#include "machine.h"

namespace emulation {

namespace {

std::string base_name(std::string path) { return path.substr(path.rfind('/') + 1); }

// {function, file:line} of an address of code, as addr2line has it.
std::pair<std::string, std::string> symbol_of(const void* address) {
  Dl_info info{};
  if (dladdr(address, &info) == 0) return {"?", "?"};
  char command[4096];
  std::snprintf(command, sizeof command, "addr2line -C -f -e '%s' 0x%zx 2>/dev/null", info.dli_fname,
                static_cast<std::size_t>(static_cast<const char*>(address) - static_cast<char*>(info.dli_fbase)));
  std::FILE* const pipe = popen(command, "r");
  if (pipe == nullptr) return {"?", "?"};
  std::string lines[2];
  for (std::string& line : lines) {
    for (int c; (c = std::fgetc(pipe)) != EOF && c != '\n';) line += static_cast<char>(c);
  }
  pclose(pipe);
  lines[1].resize(std::min(lines[1].find(" (discriminator"), lines[1].size()));
  const auto parenthesis = lines[0].rfind('(');
  return {lines[0].substr(0, parenthesis == 0 ? std::string::npos : parenthesis), base_name(lines[1])};
}

std::string place_of(const Source& source) {
  if (source.at == nullptr) return line_of(source.from);
  return base_name(source.at->file_name()) + ":" + std::to_string(source.at->line());
}

[[noreturn]] void end(const std::string& message) {
  std::fprintf(stderr, "CUDA emulation: %s\n", message.c_str());
  std::fflush(stderr);
  std::abort();
}

struct sigaction before;

// Device memory is closed, or a stack is full; anything else is not the emulation's.
void on_fault(int number, siginfo_t* info, void* context) {
  const auto address = reinterpret_cast<uintptr_t>(info->si_addr);
  if (block.running != nullptr && block.running->fiber.overflowed(address)) {
    fail("the stack of a thread is full", Source{nullptr, &block.running->at});
  }
  if (is_device(address)) {
    if (block.running != nullptr)
      fail("a kernel reads or writes outside its memory",
           Source{static_cast<const char*>(block.launch->kernel) + 1, nullptr});
    end("the host reads or writes device memory, which only copies and kernels may do");
  }
  if ((before.sa_flags & SA_SIGINFO) != 0 && before.sa_sigaction != nullptr) {
    before.sa_sigaction(number, info, context);
  } else {
    signal(number, before.sa_handler == SIG_IGN ? SIG_DFL : before.sa_handler);
  }
}

// On a stack of its own, since that of a thread may be full.
const bool kWatching = [] {
  static char stack[64 * 1024];
  const stack_t other{.ss_sp = stack, .ss_flags = 0, .ss_size = sizeof stack};
  sigaltstack(&other, nullptr);
  struct sigaction action{};
  action.sa_sigaction = on_fault;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK;
  return sigaction(SIGSEGV, &action, &before) == 0;
}();

}  // namespace

std::string line_of(const void* return_address) {
  return symbol_of(static_cast<const char*>(return_address) - 1).second;
}

std::string name_of(const Dim& at, unsigned thread) {
  return "block (" + std::to_string(at.x) + ", " + std::to_string(at.y) + ", " + std::to_string(at.z) + "), thread " +
         std::to_string(thread);
}

void fail(const std::string& what, Source source) {
  if (block.running == nullptr) fail(what);
  const std::string where = place_of(source);
  end(what + "\n  at " + where + " in kernel " + symbol_of(block.launch->kernel).first + ", " +
      name_of(here.block, block.running->index));
}

void fail(const std::string& what) {
  end(block.launch == nullptr ? what : what + "\n  in kernel " + symbol_of(block.launch->kernel).first);
}

}  // namespace emulation
