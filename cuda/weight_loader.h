#pragma once

#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <exception>
#include <functional>
#include <mutex>
#include <span>
#include <thread>
#include <vector>

#include "checkpoint/linear.h"
#include "cuda_support.h"

namespace guanaco::cuda {

/// Bytes of a tensor on their way to the device.
struct TensorBytes {
  StoredTensor tensor;
  std::uint64_t offset = 0;  ///< of the first, in the tensor
  std::uint64_t bytes = 0;   ///< 0: all from there on
  void* to = nullptr;        ///< in device memory; null: staged
};

/// Brings tensors from files to the device, as a pipeline: threads read pieces into pinned memory
/// and have them copied on one stream, while repacking kernels run on another.
///
/// The loader is used by one thread, which need not wait between tensors: load() returns as soon as
/// there is room for them in the staging memory.
class WeightLoader {
 public:
  /// Enqueues on the stream what is to be done with the bytes, `at` one address for each
  /// TensorBytes. Staged bytes may be overwritten once the stream has done it.
  using Repack = std::function<void(std::span<void* const> at, cudaStream_t stream)>;

  static constexpr std::size_t kPieceBytes = std::size_t(4) << 20;
  static constexpr int kSlotsPerReader = 2;
  static constexpr std::size_t kAlignment = 256;  ///< of each tensor in the staging memory
  static constexpr std::size_t pinned_bytes(int readers) {
    return std::size_t(readers) * kSlotsPerReader * kPieceBytes;
  }

  /// For the current device. Eight readers are as fast as any number: reads from the page cache
  /// and copies share the host's memory. staging_bytes: at least what one load() stages, three
  /// times that to overlap all stages. Throws out_of_memory, device.
  WeightLoader(std::size_t staging_bytes, int readers);
  /// Drops what was not read yet, and waits for the threads and the streams: what they write to
  /// must live until then.
  ~WeightLoader();
  WeightLoader(const WeightLoader&) = delete;
  WeightLoader& operator=(const WeightLoader&) = delete;

  /// Starts reading the bytes; `repack` is called in this or a later call of load() or finish(), in
  /// the order of the loads, when they are on their way. Throws what an earlier read or repack
  /// threw; after that the loader does nothing more.
  void load(std::vector<TensorBytes> parts, Repack repack);

  /// Returns when everything loaded so far is repacked. Throws as load().
  void finish();

  cudaStream_t stream() const noexcept { return repack_stream_; }

 private:
  struct Job {
    std::vector<TensorBytes> parts;
    Repack repack;
    std::size_t staging_begin = 0, staging_end = 0;
    std::size_t pieces_left = 0;  ///< not yet enqueued for copying
    Event copied, repacked;
  };
  struct Piece {
    Job* job;
    const TensorBytes* part;
    std::uint64_t offset;  ///< in the part
    std::size_t bytes;
  };

  void read_pieces();
  void read_piece(const Piece& piece, std::byte* slot, cudaEvent_t slot_free);
  std::size_t stage(std::size_t bytes);
  void submit(Job& job);
  void repack_first();
  bool first_is_copied();

  int device_ = 0;
  std::size_t staging_bytes_;
  DeviceBuffer staging_;
  Stream copy_stream_, repack_stream_;
  std::deque<Job> jobs_;       ///< not yet repacked; only the caller's thread adds and removes
  std::deque<Job> repacking_;  ///< enqueued; their staging memory may still be read
  std::size_t next_staging_ = 0;

  std::mutex mutex_;  ///< guards what follows, pieces_left, and the order of the copy stream
  std::condition_variable changed_;
  std::deque<Piece> pieces_;
  std::exception_ptr failure_;
  bool stop_ = false;
  std::vector<std::thread> readers_;
};

}  // namespace guanaco::cuda
