// Chunks are looked up many at a time: their cache lines are first prefetched, then read. A queue collects the chunks
// of several texts, so that short texts gain as much as long ones.
#include "tokenizer/bpe_encoder.h"

#include <algorithm>
#include <cstring>

namespace soma {
namespace {

constexpr size_t kEnough = 128;          // chunks to look up together
constexpr size_t kLeastRoom = 64;        // the least capacity for BpeSplitter::next()
constexpr size_t kMostCopied = 1 << 16;  // bytes; fewer are copied, so that bytes after a text may be read
constexpr size_t kReadableBehind = 64;   // bytes after a copied text that may be read

}  // namespace

BpeEncoder::WorkspacePool::~WorkspacePool() {
  for (auto& slot : slots_) delete slot.load();
}

std::unique_ptr<BpeEncoder::Workspace> BpeEncoder::WorkspacePool::take() {
  for (auto& slot : slots_) {
    if (slot.load(std::memory_order_relaxed) == nullptr) continue;
    if (Workspace* const workspace = slot.exchange(nullptr)) return std::unique_ptr<Workspace>(workspace);
  }
  return std::make_unique<Workspace>();
}

void BpeEncoder::WorkspacePool::put(std::unique_ptr<Workspace> workspace) {
  for (auto& slot : slots_) {
    Workspace* expected = nullptr;
    if (slot.compare_exchange_strong(expected, workspace.get())) {
      static_cast<void>(workspace.release());
      return;
    }
  }
}

struct BpeEncoder::Queue {
  struct Chunk {
    ShortChunk key;  // of a short chunk, as is the hash
    uint64_t hash;
    const char* begin;
    size_t size;
  };
  Chunk chunks[kEnough + kLeastRoom];
  size_t count = 0;
  size_t text_ends[kEnough];  // for each text that ends here: the number of chunks before its end
  size_t text_count = 0;
  bool cold = true;  // the cache misses often: prefetch the vocabulary too

  const TokenId* first_id;  // the ends of texts are counted from here
  size_t* next_end;         // where the end of the next text goes
};

void BpeEncoder::encode(const std::string_view* texts, size_t count, IdVector& ids, size_t* ends) const {
  size_t bytes = 0;
  for (size_t i = 0; i < count; ++i) bytes += texts[i].size();
  const size_t before = ids.size();
  ids.resize(before + bytes + ChunkCache::kMaxShortIds + 1);  // a token has at least one byte
  TokenId* out = ids.data() + before;
  auto workspace = pool_.take();
  const char* copied = nullptr;
  if (bytes <= kMostCopied) {
    workspace->copy.resize(std::max(workspace->copy.size(), bytes + kReadableBehind));
    char* to = workspace->copy.data();
    copied = to;
    for (size_t i = 0; i < count; to += texts[i].size(), ++i) std::memcpy(to, texts[i].data(), texts[i].size());
  }
  Queue queue;
  queue.first_id = ids.data();
  queue.next_end = ends;
  size_t chunk_ends[kEnough + kLeastRoom];
  for (size_t i = 0; i < count; ++i) {
    const char* const text = copied != nullptr ? copied : texts[i].data();
    const size_t size = texts[i].size();
    const size_t readable = copied != nullptr ? size + kReadableBehind : size;
    if (copied != nullptr) copied += size;
    BpeSplitter splitter(pattern_, {text, size}, readable);
    size_t from = 0;
    while (const size_t found = splitter.next(chunk_ends, kEnough + kLeastRoom - queue.count)) {
      for (size_t c = 0; c < found; ++c) {
        Queue::Chunk& chunk = queue.chunks[queue.count++];
        chunk.begin = text + from;
        chunk.size = chunk_ends[c] - from;
        if (chunk.size <= ShortChunk::kMaxBytes) {
          chunk.key = ShortChunk::of(chunk.begin, chunk.size, readable - from);
          chunk.hash = chunk.key.hash();
          workspace->cache.prefetch(chunk.hash);
          if (queue.cold) tokens_.prefetch(chunk.hash);
        }
        from = chunk_ends[c];
      }
      if (queue.count >= kEnough) out = encode_queue(queue, out, *workspace);
    }
    queue.text_ends[queue.text_count++] = queue.count;
    if (queue.text_count == kEnough) out = encode_queue(queue, out, *workspace);
  }
  out = encode_queue(queue, out, *workspace);
  ids.resize(static_cast<size_t>(out - ids.data()));
  pool_.put(std::move(workspace));
}

// Writes the ids of all queued chunks and returns the place after them. It writes up to kMaxShortIds + 1 words for a
// chunk, even if the chunk has fewer ids.
TokenId* BpeEncoder::encode_queue(Queue& queue, TokenId* out, Workspace& work) const {
  const size_t misses_before = work.misses;
  size_t at = 0;
  const auto encode_until = [&](size_t end) {
    for (; at < end; ++at) {
      const Queue::Chunk& chunk = queue.chunks[at];
      if (chunk.size <= ShortChunk::kMaxBytes) {
        if (const auto* const entry = work.cache.find(chunk.key, chunk.hash)) {
          std::memcpy(out, entry->ids, sizeof entry->ids);
          out += entry->count();
          continue;
        }
      }
      out = encode_unmet(chunk.begin, chunk.size, chunk.key, chunk.hash, out, work);
    }
  };
  for (size_t i = 0; i < queue.text_count; ++i) {
    encode_until(queue.text_ends[i]);
    *queue.next_end++ = static_cast<size_t>(out - queue.first_id);
  }
  encode_until(queue.count);
  if (queue.count >= kLeastRoom) queue.cold = work.misses - misses_before > queue.count / 32;
  queue.count = queue.text_count = 0;
  return out;
}

// Encodes a chunk that ChunkCache::find() does not have.
TokenId* BpeEncoder::encode_unmet(const char* chunk, size_t size, const ShortChunk& key, uint64_t key_hash,
                                  TokenId* out, Workspace& work) const {
  const bool kept = size <= ChunkCache::kMaxLongBytes;
  const uint64_t hash = kept ? hash_bytes({chunk, size}) : 0;
  if (kept) {
    if (const size_t count = work.cache.find_long({chunk, size}, hash, out)) return out + count;
  }
  ++work.misses;
  const size_t count = encode_new(chunk, size, work);
  std::copy(work.ids.data(), work.ids.data() + count, out);
  if (size <= ShortChunk::kMaxBytes && count <= ChunkCache::kMaxShortIds) {
    work.cache.insert(key, key_hash, work.ids.data(), count);
  } else if (kept) {
    work.cache.insert_long({chunk, size}, hash, work.ids.data(), count);
  }
  return out + count;
}

size_t BpeEncoder::first_missing(std::string_view chunk) const {
  return merger_.first_missing(reinterpret_cast<const unsigned char*>(chunk.data()), chunk.size());
}

size_t BpeEncoder::find_missing(std::string_view text) const {
  size_t found = text.size();
  for_each_chunk(pattern_, text, [&](std::string_view chunk) {
    if (found < text.size() || (whole_first_ && tokens_.find(chunk) != TokenIds::kAbsent)) return;
    const size_t at = first_missing(chunk);
    if (at < chunk.size()) found = static_cast<size_t>(chunk.data() - text.data()) + at;
  });
  return found;
}

// Encodes a chunk into work.ids, without the cache, and returns the number of ids.
size_t BpeEncoder::encode_new(const char* chunk, size_t size, Workspace& work) const {
  if (work.ids.size() < size) work.ids.resize(std::max(size, work.ids.size() * 2));
  if (whole_first_) {
    work.ids[0] = tokens_.find({chunk, size});
    if (work.ids[0] != TokenIds::kAbsent) return 1;
  }
  if (first_missing({chunk, size}) < size) throw MissingByte{};
  return merger_.merge(reinterpret_cast<const unsigned char*>(chunk), size, work.ids.data(), work.scratch);
}

}  // namespace soma
