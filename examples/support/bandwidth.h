#pragma once

namespace support {

/// Bytes that `threads` threads read from memory in a second: the best of a few passes over a
/// buffer far larger than any cache. Takes a fraction of a second and 512 MiB; throws
/// std::bad_alloc if there is no room.
double measure_read_bandwidth(int threads);

}  // namespace support
