// A limiter of RocksDB's that asks Rust before a compaction writes, and lets everything else pass.

#include <cstdint>
#include <memory>

#include "rocksdb/c.h"
#include "rocksdb/rate_limiter.h"

// As in RocksDB's db/c.cc: what rocksdb_options_set_ratelimiter takes.
struct rocksdb_ratelimiter_t {
  std::shared_ptr<ROCKSDB_NAMESPACE::RateLimiter> rep;
};

namespace {

using ROCKSDB_NAMESPACE::Env;
using ROCKSDB_NAMESPACE::RateLimiter;

// Bytes asked for at once: how long one of them can be held up is a matter of these.
constexpr int64_t kBurst = 64 << 10;
// What RocksDB lets writers do that must wait for compactions, where there is no limiter.
constexpr int64_t kDelayedWrites = 16 << 20;

class CompactionLimiter : public RateLimiter {
 public:
  CompactionLimiter(void (*pass)(const void*, uint64_t), void (*drop)(const void*),
                    const void* state)
      : RateLimiter(Mode::kWritesOnly), pass_(pass), drop_(drop), state_(state) {}
  CompactionLimiter(const CompactionLimiter&) = delete;
  CompactionLimiter& operator=(const CompactionLimiter&) = delete;
  ~CompactionLimiter() override { drop_(state_); }

  using RateLimiter::Request;
  // Compactions ask with the lowest priority, but for tables that writers already wait for; buffers that
  // are written out do not.
  void Request(const int64_t bytes, const Env::IOPriority priority) override {
    if (priority == Env::IO_LOW && bytes > 0) {
      pass_(state_, static_cast<uint64_t>(bytes));
    }
  }

  // Whatever else is written goes in one piece.
  size_t RequestToken(size_t bytes, size_t alignment, Env::IOPriority priority,
                      ROCKSDB_NAMESPACE::Statistics* stats, OpType type) override {
    if (priority != Env::IO_LOW) {
      return bytes;
    }
    return RateLimiter::RequestToken(bytes, alignment, priority, stats, type);
  }

  void SetBytesPerSecond(int64_t) override {}
  int64_t GetSingleBurstBytes() const override { return kBurst; }
  int64_t GetTotalBytesThrough(const Env::IOPriority) const override { return 0; }
  int64_t GetTotalRequests(const Env::IOPriority) const override { return 0; }
  int64_t GetBytesPerSecond() const override { return kDelayedWrites; }

 private:
  void (*const pass_)(const void*, uint64_t);
  void (*const drop_)(const void*);
  const void* const state_;
};

}  // namespace

// `state` is dropped when the last of the options and databases that have the limiter is gone.
extern "C" void smalti_limit_compactions(rocksdb_options_t* options,
                                         void (*pass)(const void*, uint64_t),
                                         void (*drop)(const void*), const void* state) {
  rocksdb_ratelimiter_t limiter{std::make_shared<CompactionLimiter>(pass, drop, state)};
  rocksdb_options_set_ratelimiter(options, &limiter);
}
