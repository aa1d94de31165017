#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

namespace guanaco {

/// One field of a message in protobuf's wire format.
struct ProtobufField {
  enum Type { varint = 0, fixed64 = 1, bytes = 2, fixed32 = 5 };
  std::uint64_t number = 0;
  Type type = varint;
  std::uint64_t value = 0;    ///< of a varint
  std::string_view contents;  ///< of bytes: a string or an embedded message
  std::string_view wire;      ///< the field as it stands in the message, its tag included
};

/// Walks the fields of one message, in file order, never past its end. Groups, which nobody has
/// written for fifteen years, count as broken.
class ProtobufReader {
 public:
  explicit ProtobufReader(std::string_view message) : rest_(message) {}

  /// The next field; false at the end of the message and where it is broken().
  bool next(ProtobufField& field) {
    if (rest_.empty() || broken_) return false;
    const std::string_view start = rest_;
    std::uint64_t tag = 0, size = 0;
    field = {};
    broken_ = !read_varint(tag) || tag >> 3 == 0;
    if (broken_) return false;
    field.number = tag >> 3;
    switch (tag & 7) {
      case ProtobufField::varint:
        broken_ = !read_varint(field.value);
        break;
      case ProtobufField::fixed64:
        broken_ = !take(8, field.contents);
        break;
      case ProtobufField::bytes:
        broken_ = !read_varint(size) || !take(size, field.contents);
        break;
      case ProtobufField::fixed32:
        broken_ = !take(4, field.contents);
        break;
      default:
        broken_ = true;
    }
    field.type = ProtobufField::Type(tag & 7);
    field.wire = start.substr(0, start.size() - rest_.size());
    return !broken_;
  }

  bool broken() const noexcept { return broken_; }

 private:
  bool take(std::uint64_t size, std::string_view& bytes) {
    if (size > rest_.size()) return false;
    bytes = rest_.substr(0, std::size_t(size));
    rest_.remove_prefix(std::size_t(size));
    return true;
  }

  bool read_varint(std::uint64_t& value) {
    value = 0;
    for (int shift = 0; shift < 64 && !rest_.empty(); shift += 7) {
      const auto byte = static_cast<unsigned char>(rest_.front());
      rest_.remove_prefix(1);
      value |= std::uint64_t(byte & 0x7f) << shift;
      if (byte < 0x80) return shift < 63 || byte <= 1;
    }
    return false;
  }

  std::string_view rest_;
  bool broken_ = false;
};

}  // namespace guanaco
