// Text to ids: chunks (bpe_split.h), each looked up among those met before (bpe_cache.h), else taken whole where it is
// a token, else merged (bpe_merge.h).
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <string_view>
#include <vector>

#include "tokenizer/bpe_cache.h"
#include "tokenizer/bpe_merge.h"
#include "tokenizer/bpe_split.h"
#include "tokenizer/bpe_tokens.h"

namespace soma {

class BpeEncoder {
 public:
  // Thrown where a chunk has a byte that is no token and is none as a whole.
  struct MissingByte {};

  // `tokens` must outlive it. `whole_first`: a chunk that is a token as a whole is taken so.
  BpeEncoder(BpePattern pattern, const TokenIds& tokens, bool whole_first, Merger merger)
      : pattern_(pattern), tokens_(tokens), whole_first_(whole_first), merger_(std::move(merger)) {}

  // Appends the ids of `count` texts in a row, and writes where in `ids` those of each end. Thread-safe.
  // Throws MissingByte, and `ids` and `ends` then hold anything from their old sizes on.
  void encode(const std::string_view* texts, size_t count, IdVector& ids, size_t* ends) const;

  // The first byte that encode() throws for; the size of the text where there is none.
  size_t find_missing(std::string_view text) const;

 private:
  // What a thread needs, kept between calls.
  struct Workspace {
    ChunkCache cache;
    MergeScratch scratch;
    std::vector<TokenId> ids;
    std::vector<char> copy;  // of texts that are encoded together
    size_t misses = 0;       // chunks that the cache did not have
  };
  class WorkspacePool {
   public:
    ~WorkspacePool();
    std::unique_ptr<Workspace> take();
    void put(std::unique_ptr<Workspace> workspace);

   private:
    std::array<std::atomic<Workspace*>, 64> slots_{};
  };
  struct Queue;

  TokenId* encode_queue(Queue& queue, TokenId* out, Workspace& work) const;
  TokenId* encode_unmet(const char* chunk, size_t size, const ShortChunk& key, uint64_t key_hash, TokenId* out,
                        Workspace& work) const;
  size_t first_missing(std::string_view chunk) const;
  size_t encode_new(const char* chunk, size_t size, Workspace& work) const;

  BpePattern pattern_;
  const TokenIds& tokens_;
  bool whole_first_;
  Merger merger_;
  mutable WorkspacePool pool_;
};

}  // namespace soma
