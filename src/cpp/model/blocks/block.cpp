// The list of architectures, and the defaults of a block.
#include "model/blocks/block.h"

#include <string>

#include "base/check.h"

namespace soma {

void Block::place_decode(const DecodePlan& plan, DecodeBuffers& d) const {
  d.middle = plan.rows(plan.config.d_model);
  d.qkv = plan.rows(plan.config.qkv_dim());
  d.heads = plan.rows(plan.config.q_dim());
  d.hidden = plan.rows(plan.config.d_ff);
}

const std::vector<const Block*>& blocks() {
  static const std::vector<const Block*> list{&soma_block(), &gpt2_block(), &llama_block()};
  return list;
}

const Block& find_block(std::string_view name) {
  std::string names;
  for (const Block* block : blocks()) {
    if (name == block->traits.name) return *block;
    names += (names.empty() ? "'" : ", '") + std::string(block->traits.name) + "'";
  }
  fail("block must be one of ", names, ", got '", name, "'");
}

}  // namespace soma
