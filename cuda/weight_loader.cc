#include "weight_loader.h"

#include <algorithm>
#include <string>
#include <utility>

#include "support/signal_mask.h"

namespace guanaco::cuda {
namespace {

std::size_t aligned(std::size_t bytes) {
  constexpr std::size_t kAlignment = WeightLoader::kAlignment;
  return (bytes + kAlignment - 1) / kAlignment * kAlignment;
}

}  // namespace

WeightLoader::WeightLoader(std::size_t staging_bytes, int readers)
    : staging_bytes_(staging_bytes / kAlignment * kAlignment),
      staging_(staging_bytes_, "staging weights"),
      copy_stream_(make_stream()),
      repack_stream_(make_stream()) {
  check(cudaGetDevice(&device_), "cudaGetDevice");
  readers_.reserve(std::size_t(readers));
  const SignalsMasked masked;
  try {
    for (int i = 0; i < readers; ++i) readers_.emplace_back([this] { read_pieces(); });
  } catch (const std::exception& error) {
    {
      const std::lock_guard lock(mutex_);
      stop_ = true;
    }
    changed_.notify_all();
    for (std::thread& reader : readers_) reader.join();
    throw Error(ErrorCode::out_of_memory,
                std::string("threads that read weights: expected ") + std::to_string(readers) +
                    ", found " + std::to_string(readers_.size()) + ": " + error.what());
  }
}

WeightLoader::~WeightLoader() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  changed_.notify_all();
  for (std::thread& reader : readers_) reader.join();
  // A failure here has been, or will be, reported by whoever uses the device next.
  static_cast<void>(cudaStreamSynchronize(copy_stream_));
  static_cast<void>(cudaStreamSynchronize(repack_stream_));
}

void WeightLoader::load(std::vector<TensorBytes> parts, Repack repack) {
  Job job;
  std::size_t staged = 0;
  for (TensorBytes& part : parts) {
    if (part.bytes == 0) part.bytes = part.tensor.entry->bytes - part.offset;
    if (part.to == nullptr) staged += aligned(std::size_t(part.bytes));
  }
  if (staged > staging_bytes_)
    throw Error(ErrorCode::internal, "staging weights: " + std::to_string(staged) + " bytes into " +
                                         std::to_string(staging_bytes_));
  job.copied = make_event();
  job.repacked = make_event();
  job.repack = std::move(repack);
  while (!jobs_.empty() && first_is_copied()) repack_first();
  job.staging_begin = stage(staged);
  job.staging_end = job.staging_begin + staged;

  std::size_t next = job.staging_begin;
  for (TensorBytes& part : parts) {
    if (part.to != nullptr) continue;
    part.to = staging_.as<std::byte>() + next;
    next += aligned(std::size_t(part.bytes));
  }
  job.parts = std::move(parts);
  jobs_.push_back(std::move(job));
  submit(jobs_.back());
}

void WeightLoader::finish() {
  while (!jobs_.empty()) repack_first();
  check(cudaStreamSynchronize(repack_stream_), "cudaStreamSynchronize");
  repacking_.clear();
  next_staging_ = 0;
}

/// Room for so many bytes. Staging memory is a ring; what lies in the way is repacked, and later
/// copies wait for that on the device.
std::size_t WeightLoader::stage(std::size_t bytes) {
  if (bytes == 0) return next_staging_;
  const std::size_t begin = next_staging_ + bytes > staging_bytes_ ? 0 : next_staging_;
  const auto in_the_way = [&](const Job& job) {
    return job.staging_begin < begin + bytes && begin < job.staging_end;
  };
  while (std::any_of(jobs_.begin(), jobs_.end(), in_the_way)) repack_first();
  while (std::any_of(repacking_.begin(), repacking_.end(), in_the_way)) {
    const std::lock_guard lock(mutex_);
    check(cudaStreamWaitEvent(copy_stream_, repacking_.front().repacked), "cudaStreamWaitEvent");
    repacking_.pop_front();
  }
  next_staging_ = begin + bytes;
  return begin;
}

void WeightLoader::submit(Job& job) {
  std::vector<Piece> pieces;
  for (const TensorBytes& part : job.parts)
    for (std::uint64_t offset = 0; offset < part.bytes; offset += kPieceBytes)
      pieces.push_back(
          {&job, &part, offset, std::min(kPieceBytes, std::size_t(part.bytes - offset))});
  std::stable_sort(pieces.begin(), pieces.end(), [](const Piece& a, const Piece& b) {
    const auto place = [](const Piece& piece) {
      const StoredTensor& tensor = piece.part->tensor;
      return std::pair(tensor.file, tensor.entry->offset + piece.part->offset + piece.offset);
    };
    return place(a) < place(b);
  });
  {
    const std::lock_guard lock(mutex_);
    if (failure_) std::rethrow_exception(failure_);
    job.pieces_left = pieces.size();
    pieces_.insert(pieces_.end(), pieces.begin(), pieces.end());
  }
  changed_.notify_all();
}

bool WeightLoader::first_is_copied() {
  const std::lock_guard lock(mutex_);
  if (failure_) std::rethrow_exception(failure_);
  return jobs_.front().pieces_left == 0;
}

/// Waits until the first job's copies are enqueued, and enqueues its repacking.
void WeightLoader::repack_first() {
  Job& job = jobs_.front();
  {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return failure_ || job.pieces_left == 0; });
    if (failure_) std::rethrow_exception(failure_);
  }
  check(cudaStreamWaitEvent(repack_stream_, job.copied), "cudaStreamWaitEvent");
  std::vector<void*> at;
  for (const TensorBytes& part : job.parts) at.push_back(part.to);
  try {
    job.repack(at, repack_stream_);
    check(cudaEventRecord(job.repacked, repack_stream_), "cudaEventRecord");
  } catch (...) {
    const std::lock_guard lock(mutex_);
    failure_ = std::current_exception();
    pieces_.clear();
    throw;
  }
  repacking_.push_back(std::move(job));
  jobs_.pop_front();
}

/// A reader: takes pieces until the loader ends or something fails.
void WeightLoader::read_pieces() {
  try {
    check(cudaSetDevice(device_), "cudaSetDevice");
    const PinnedBuffer slots(kSlotsPerReader * kPieceBytes, "reading weights");
    Event slot_free[kSlotsPerReader];
    for (Event& event : slot_free) event = make_event();
    for (int slot = 0;; slot = (slot + 1) % kSlotsPerReader) {
      Piece piece;
      {
        std::unique_lock lock(mutex_);
        changed_.wait(lock, [&] { return stop_ || failure_ || !pieces_.empty(); });
        if (stop_ || failure_) break;
        piece = pieces_.front();
        pieces_.pop_front();
      }
      read_piece(piece, slots.as<std::byte>() + std::size_t(slot) * kPieceBytes, slot_free[slot]);
    }
    // Copies from the slots may be under way.
    for (const Event& event : slot_free) check(cudaEventSynchronize(event), "cudaEventSynchronize");
  } catch (...) {
    {
      const std::lock_guard lock(mutex_);
      if (!failure_) failure_ = std::current_exception();
      pieces_.clear();
    }
    changed_.notify_all();
  }
}

void WeightLoader::read_piece(const Piece& piece, std::byte* slot, cudaEvent_t slot_free) {
  check(cudaEventSynchronize(slot_free), "cudaEventSynchronize");
  const StoredTensor& tensor = piece.part->tensor;
  tensor.file->file().read(tensor.entry->offset + piece.part->offset + piece.offset,
                           std::span(slot, piece.bytes));
  bool complete;
  {
    const std::lock_guard lock(mutex_);
    check(cudaMemcpyAsync(static_cast<std::byte*>(piece.part->to) + piece.offset, slot, piece.bytes,
                          cudaMemcpyHostToDevice, copy_stream_),
          "cudaMemcpyAsync");
    check(cudaEventRecord(slot_free, copy_stream_), "cudaEventRecord");
    complete = --piece.job->pieces_left == 0;
    if (complete) check(cudaEventRecord(piece.job->copied, copy_stream_), "cudaEventRecord");
  }
  if (complete) changed_.notify_all();
}

}  // namespace guanaco::cuda
