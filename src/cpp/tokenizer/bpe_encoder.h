// Turns text into ids. It splits the text into chunks (bpe_split.h) and looks each up in a cache (bpe_cache.h). A new
// chunk is taken as one token where that is allowed and the token exists, else merged (bpe_merge.h).
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
  // Thrown for a chunk that needs a byte that is not a token.
  struct MissingByte {};

  // `tokens` must outlive the encoder. `whole_first`: a chunk that is a token becomes that token without merging.
  BpeEncoder(BpePattern pattern, const TokenIds& tokens, bool whole_first, Merger merger)
      : pattern_(pattern), tokens_(tokens), whole_first_(whole_first), merger_(std::move(merger)) {}

  // Appends the ids of `count` texts. Sets ends[i] to the size of `ids` after the ids of text i. Thread-safe.
  // Throws MissingByte; the new elements of `ids` and `ends` are then undefined.
  void encode(const std::string_view* texts, size_t count, IdVector& ids, size_t* ends) const;

  // The offset of the first byte for which encode() throws; the size of the text where it does not throw.
  size_t find_missing(std::string_view text) const;

 private:
  // The working memory of a thread, kept between calls.
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
