// The batch engine: see batch.hpp.
#include "batch.hpp"

#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstring>
#include <system_error>

namespace fastselfie::jpeg {
namespace {

void decode_item(const Item& item, Size size, uint8_t* out, Decoder& decoder) {
  if (item.bytes.data == nullptr) throw Error("its bytes would lie outside of the file");
  if (item.kind == Kind::kJpeg) {
    decoder.decode_resized(item.bytes, item.box, item.flip, size, out);
    return;
  }
  const Size raw = item.raw_size;
  if (raw.width < 1 || raw.height < 1 ||
      item.bytes.size !=
          uint64_t{3} * static_cast<uint32_t>(raw.width) * static_cast<uint32_t>(raw.height)) {
    throw Error("raw pixels: the length does not match the shape");
  }
  const Padding padding = item.kind == Kind::kRawZeroPadded  ? Padding::kZero
                          : item.kind == Kind::kRawReflected ? Padding::kReflect
                                                             : Padding::kNone;
  decoder.resize_raw(item.bytes.data, raw, item.box, padding, item.flip, size, out);
}

}  // namespace

bool Batch::take_one(Decoder& decoder) {
  const size_t index = next_.fetch_add(1, std::memory_order_relaxed);
  if (index >= items_.size()) return false;
  std::string fault;
  try {
    decode_item(items_[index], size_, row(index), decoder);
  } catch (const std::exception& error) {  // std::bad_alloc too: a sample's fault, not the process'
    fault = error.what();
  }
  finish(index, std::move(fault));
  return true;
}

void Batch::drop_the_rest() {
  for (size_t i; (i = next_.fetch_add(1)) < items_.size();) finish(i, "the decoder was closed");
}

void Batch::finish(size_t index, std::string fault) {
  if (!fault.empty()) std::memset(row(index), 0, row_bytes());
  faults_[index] = std::move(fault);
  if (left_.fetch_sub(1, std::memory_order_acq_rel) == 1) {
    const std::lock_guard lock(mutex_);
    done_.notify_all();
  }
}

std::vector<Failure> Batch::wait() {
  std::unique_lock lock(mutex_);
  done_.wait(lock, [this] { return left_.load(std::memory_order_acquire) == 0; });
  std::vector<Failure> failures;
  for (size_t i = 0; i < faults_.size(); ++i) {
    if (!faults_[i].empty()) failures.push_back({static_cast<int>(i), faults_[i]});
  }
  return failures;
}

BatchPool::BatchPool(int threads, int niceness) : owner_(getpid()), niceness_(niceness) {
  threads_.reserve(threads);
  try {
    for (int i = 0; i < threads; ++i) threads_.emplace_back([this] { work(); });
  } catch (const std::system_error&) {
    const std::string started = std::to_string(threads_.size());
    close();  // threads that nobody joins would end the process
    throw Error("the system lets this process have only " + started + " threads more, not " +
                std::to_string(threads));
  }
}

bool BatchPool::is_forked_copy() const { return getpid() != owner_; }

void BatchPool::require_own_process() const {
  if (is_forked_copy()) throw Error("this decoder was made before a fork; make it afterwards");
}

void BatchPool::work() {
#ifdef __linux__
  // Of a thread, against POSIX, by its number. A refusal is no fault.
  const auto self = static_cast<id_t>(syscall(SYS_gettid));
  if (getpriority(PRIO_PROCESS, self) < niceness_) setpriority(PRIO_PROCESS, self, niceness_);
#endif
  Decoder decoder;
  std::unique_lock lock(mutex_);
  for (;;) {
    work_there_.wait(lock, [this] { return closing_ || !queue_.empty(); });
    if (closing_) return;
    const std::shared_ptr<Batch> batch = queue_.front();
    lock.unlock();
    while (!closing_ && batch->take_one(decoder)) {
    }
    lock.lock();
    // Out of items: next batch. When closing it stays, for close() to see what is left of it.
    if (!closing_ && !queue_.empty() && queue_.front() == batch) queue_.pop_front();
  }
}

void BatchPool::submit(std::shared_ptr<Batch> batch) {
  require_own_process();
  if (batch->items_.empty()) return;
  const std::lock_guard lock(mutex_);
  if (closing_) throw Error("the decoder is closed");
  queue_.push_back(std::move(batch));
  work_there_.notify_all();
}

std::vector<Failure> BatchPool::wait(Batch& batch, bool help) {
  require_own_process();
  if (help) {
    const std::lock_guard lock(helper_mutex_);
    while (!closing_ && batch.take_one(helper_)) {
    }
  }
  return batch.wait();
}

void BatchPool::close() {
  const std::lock_guard one_at_a_time(close_mutex_);
  {
    const std::lock_guard lock(mutex_);
    closing_ = true;
    work_there_.notify_all();
  }
  for (std::thread& thread : threads_) thread.join();
  threads_.clear();
  const std::lock_guard until_the_helper_is_done(helper_mutex_);
  for (const auto& batch : queue_) batch->drop_the_rest();
  queue_.clear();
}

}  // namespace fastselfie::jpeg
