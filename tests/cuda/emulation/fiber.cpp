// Fibers: on x86-64 a switch of stacks in a few instructions, elsewhere that of the C library.
#include <sys/mman.h>

#include <cstdlib>

#include "machine.h"

#ifndef __x86_64__
#include <ucontext.h>
#endif

namespace emulation {

#ifdef __x86_64__

// Saves the registers that a call must keep on the old stack, and takes them from the new one.
extern "C" void soma_emulation_switch(void** old_stack, void* new_stack);
__asm__(
    ".text\n"
    ".globl soma_emulation_switch\n"
    ".hidden soma_emulation_switch\n"
    ".type soma_emulation_switch,@function\n"
    "soma_emulation_switch:\n"
    "  pushq %rbp\n  pushq %rbx\n  pushq %r12\n  pushq %r13\n  pushq %r14\n  pushq %r15\n"
    "  movq %rsp, (%rdi)\n  movq %rsi, %rsp\n"
    "  popq %r15\n  popq %r14\n  popq %r13\n  popq %r12\n  popq %rbx\n  popq %rbp\n"
    "  ret\n"
    ".size soma_emulation_switch,.-soma_emulation_switch\n");

struct Fiber::Context {
  void *own = nullptr, *resumer = nullptr;
};

void Fiber::start(void (*function)()) {
  auto** top = reinterpret_cast<void**>(stack_ + kGuard + kBytes) - 1;
  *top = nullptr;  // where the function would return to; the stack is aligned as after a call
  *--top = reinterpret_cast<void*>(function);
  for (int i = 0; i < 6; ++i) *--top = nullptr;
  context_->own = top;
}
void Fiber::resume() { soma_emulation_switch(&context_->resumer, context_->own); }
void Fiber::yield() { soma_emulation_switch(&context_->own, context_->resumer); }

#else

struct Fiber::Context {
  ucontext_t own, resumer;
};

void Fiber::start(void (*function)()) {
  getcontext(&context_->own);
  context_->own.uc_stack.ss_sp = stack_ + kGuard;
  context_->own.uc_stack.ss_size = kBytes;
  context_->own.uc_link = nullptr;
  makecontext(&context_->own, function, 0);
}
void Fiber::resume() { swapcontext(&context_->resumer, &context_->own); }
void Fiber::yield() { swapcontext(&context_->own, &context_->resumer); }

#endif

Fiber::Fiber() : context_(std::make_unique<Context>()) {
  void* const stack = mmap(nullptr, kGuard + kBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (stack == MAP_FAILED) fail("no memory for the stack of a thread");
  stack_ = static_cast<char*>(stack);
  mprotect(stack_, kGuard, PROT_NONE);
}
Fiber::~Fiber() { munmap(stack_, kGuard + kBytes); }

}  // namespace emulation
