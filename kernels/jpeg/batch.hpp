// The batch engine: a pool of threads that fills batches, several in flight, in order.
//
// A forked child has none of the threads: there the pool refuses work and must not be destroyed
// (see is_forked_copy). Make the decoder in the process that uses it ("spawn", or after the fork).
//
// The bytes are read where they lie. If they are a mapped file that somebody shortens meanwhile,
// the system ends the process with SIGBUS: nothing here can turn that into an Error.
#pragma once

#include <sys/types.h>

#include <atomic>
#include <condition_variable>
#include <deque>
#include <memory>
#include <mutex>
#include <thread>

#include "decode.hpp"

namespace fastselfie::jpeg {

enum class Kind : uint8_t { kJpeg = 0, kRaw = 1, kRawZeroPadded = 2, kRawReflected = 3 };

struct Item {
  Bytes bytes;
  Kind kind = Kind::kJpeg;
  Size raw_size;  // of a raw item, which has no header to say so
  Box box;
  bool flip = false;
};

struct Failure {
  int index = 0;
  std::string message;
};

class Batch {
 public:
  Batch(std::vector<Item> items, Size size, uint8_t* out)
      : items_(std::move(items)),
        size_(size),
        out_(out),
        faults_(items_.size()),
        left_(items_.size()) {}

 private:
  friend class BatchPool;
  // Decodes one item that nobody has taken yet; false when there is none.
  bool take_one(Decoder& decoder);
  void drop_the_rest();
  void finish(size_t index, std::string fault);  // an empty one: the item is decoded
  std::vector<Failure> wait();

  size_t row_bytes() const { return size_t{3} * size_.width * size_.height; }
  uint8_t* row(size_t index) { return out_ + index * row_bytes(); }

  const std::vector<Item> items_;
  const Size size_;
  uint8_t* const out_;
  std::vector<std::string> faults_;  // a place an item, so that threads need no lock for them
  std::atomic<size_t> next_{0}, left_;
  std::mutex mutex_;
  std::condition_variable done_;
};

class BatchPool {
 public:
  // niceness: of the threads, as nice(1) has it, where the system keeps one for each (Linux).
  explicit BatchPool(int threads, int niceness = 0);
  ~BatchPool() { close(); }

  // Whether this is a forked child's copy. Such a pool must be leaked: its threads cannot be
  // joined, and glibc would wait for them to leave the condition variable before it destroys that.
  bool is_forked_copy() const;

  void submit(std::shared_ptr<Batch> batch);

  // Blocks until every item is done and returns the failed ones, in order; their rows are zeros.
  // `help`: the caller decodes too while it waits, so that it need not be a thread too many. The
  // caller shares in the batch's ownership until this returns.
  std::vector<Failure> wait(Batch& batch, bool help);

  // Ends the threads after the images that they are in the midst of. What is left of the batches
  // fails with "closed", so nobody waits for ever. Once it returns nothing is read or written any
  // more. May be called twice, and by several threads.
  void close();

 private:
  void work();
  void require_own_process() const;

  std::mutex mutex_;
  std::condition_variable work_there_;
  std::deque<std::shared_ptr<Batch>> queue_;  // those with items that nobody has taken
  std::atomic<bool> closing_{false};
  std::vector<std::thread> threads_;
  const pid_t owner_;  // the process that has the threads
  const int niceness_;
  std::mutex close_mutex_;
  std::mutex helper_mutex_;
  Decoder helper_;  // of the caller of wait()
};

}  // namespace fastselfie::jpeg
