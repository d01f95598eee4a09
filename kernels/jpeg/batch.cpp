// The batch engine: see batch.hpp.
#include "batch.hpp"

#include <unistd.h>

#include <algorithm>
#include <cstring>

namespace fastselfie::jpeg {
namespace {

void decode_item(const Item& item, Size size, uint8_t* out, Decoder& decoder) {
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
  run(static_cast<int>(index), decoder);
  return true;
}

void Batch::run(int index, Decoder& decoder) {
  const size_t bytes = size_t{3} * size_.width * size_.height;
  uint8_t* const out = out_ + bytes * index;
  std::string fault;
  try {
    decode_item(items_[index], size_, out, decoder);
  } catch (const std::exception& error) {  // std::bad_alloc too: a sample's fault, not the process'
    fault = error.what();
    std::memset(out, 0, bytes);
  }
  if (!fault.empty()) {
    const std::lock_guard lock(mutex_);
    failures_.push_back({index, std::move(fault)});
  }
  if (left_.fetch_sub(1, std::memory_order_acq_rel) == 1) {
    const std::lock_guard lock(mutex_);
    done_.notify_all();
  }
}

BatchPool::BatchPool(int threads) : owner_(getpid()) {
  threads_.reserve(threads);
  for (int i = 0; i < threads; ++i) threads_.emplace_back([this] { work(); });
}

bool BatchPool::is_forked_copy() const { return getpid() != owner_; }

void BatchPool::work() {
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
    // Out of items: next batch. When closing it stays, for drop() to see what is left of it.
    if (!closing_ && !queue_.empty() && queue_.front() == batch) queue_.pop_front();
  }
}

void BatchPool::submit(std::shared_ptr<Batch> batch) {
  if (is_forked_copy()) throw Error("this decoder was made before a fork; make it afterwards");
  if (batch->items_.empty()) return;
  const std::lock_guard lock(mutex_);
  if (closing_) throw Error("the decoder is closed");
  queue_.push_back(std::move(batch));
  work_there_.notify_all();
}

std::vector<Failure> BatchPool::wait(Batch& batch, bool help) {
  if (help) {
    const std::lock_guard lock(helper_mutex_);
    while (!closing_ && batch.take_one(helper_)) {
    }
  }
  std::unique_lock lock(batch.mutex_);
  batch.done_.wait(lock, [&] { return batch.left_.load(std::memory_order_acquire) == 0; });
  std::sort(batch.failures_.begin(), batch.failures_.end(),
            [](const Failure& a, const Failure& b) { return a.index < b.index; });
  return batch.failures_;
}

void BatchPool::close() {
  {
    const std::lock_guard lock(mutex_);
    closing_ = true;
    work_there_.notify_all();
  }
  for (std::thread& thread : threads_) thread.join();
  threads_.clear();
  for (const auto& batch : queue_) drop(*batch);
  queue_.clear();
}

void BatchPool::drop(Batch& batch) {
  const size_t bytes = size_t{3} * batch.size_.width * batch.size_.height;
  for (size_t i; (i = batch.next_.fetch_add(1)) < batch.items_.size();) {
    std::memset(batch.out_ + bytes * i, 0, bytes);
    const std::lock_guard lock(batch.mutex_);
    batch.failures_.push_back({static_cast<int>(i), "the decoder was closed"});
    if (batch.left_.fetch_sub(1) == 1) batch.done_.notify_all();
  }
}

}  // namespace fastselfie::jpeg
