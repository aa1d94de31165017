#include "io/safetensors.h"

#include <algorithm>
#include <array>
#include <bit>
#include <optional>
#include <utility>

#include <nlohmann/json.hpp>

#include "support/check.h"
#include "support/utf8.h"

namespace guanaco {
namespace {

static_assert(std::endian::native == std::endian::little, "tensors are used as they are stored");

struct DTypeFacts {
  std::string_view name;
  int bits;
};
constexpr std::array<DTypeFacts, 22> kDTypes = {
    {{"BOOL", 8},    {"U8", 8},      {"I8", 8},          {"U16", 16},        {"I16", 16},
     {"F16", 16},    {"BF16", 16},   {"U32", 32},        {"I32", 32},        {"F32", 32},
     {"C64", 64},    {"U64", 64},    {"I64", 64},        {"F64", 64},        {"F8_E5M2", 8},
     {"F8_E4M3", 8}, {"F8_E8M0", 8}, {"F8_E5M2FNUZ", 8}, {"F8_E4M3FNUZ", 8}, {"F6_E2M3", 6},
     {"F6_E3M2", 6}, {"F4", 4}}};
static_assert(std::size_t(DType::f4) + 1 == kDTypes.size());

std::optional<DType> dtype_named(std::string_view name) {
  for (std::size_t i = 0; i < kDTypes.size(); ++i)
    if (kDTypes[i].name == name) return DType(i);
  return std::nullopt;
}

constexpr std::uint64_t kHeaderBytes = 100'000'000;
constexpr std::uint64_t kLargestInteger = (std::uint64_t(1) << 48) - 1;
constexpr std::size_t kEntries = 1'000'000, kMetadataEntries = 65'536, kNameBytes = 1024,
                      kDimensions = 32;

/// Reads a header event by event, so that a hostile one costs no more than the entries it is
/// allowed. Every method returns true or throws.
class HeaderReader : public nlohmann::json_sax<nlohmann::json> {
 public:
  explicit HeaderReader(std::string file) : file_(std::move(file)) {}

  std::vector<TensorEntry> tensors;  ///< offsets still count from the end of the header
  std::map<std::string, std::string> metadata;

  bool start_object(std::size_t) override {
    if (place_ == Place::outside) return go(Place::file);
    if (place_ == Place::file) return go(in_metadata_ ? Place::metadata : Place::tensor);
    unexpected("an object");
  }

  bool key(std::string& key) override {
    if (key.size() > kNameBytes)
      fail(ErrorCode::malformed, "{}: expected names of at most {} bytes, found one of {}: \"{}\"",
           file_, kNameBytes, key.size(), printable(key));
    key_ = key;
    if (place_ == Place::file) {
      in_metadata_ = key == "__metadata__";
      if (in_metadata_) {
        require(!std::exchange(saw_metadata_, true), ErrorCode::malformed,
                "{}: __metadata__ appears twice", file_);
      } else {
        require(tensors.size() < kEntries, ErrorCode::malformed, "{}: holds more than {} tensors",
                file_, kEntries);
        tensors.push_back({key, DType::u8, {}, 0, 0});
        saw_dtype_ = saw_shape_ = saw_offsets_ = false;
        offsets_.clear();
      }
    } else if (place_ == Place::metadata) {
      require(metadata.size() < kMetadataEntries, ErrorCode::malformed,
              "{}: __metadata__: holds more than {} entries", file_, kMetadataEntries);
      if (metadata.contains(key))
        fail(ErrorCode::malformed, "{}: __metadata__: key \"{}\" appears twice", file_,
             printable(key));
    } else {
      bool& seen = key == "dtype"          ? saw_dtype_
                   : key == "shape"        ? saw_shape_
                   : key == "data_offsets" ? saw_offsets_
                                           : unknown_field();
      check(!std::exchange(seen, true), "field \"{}\" appears twice", key);
    }
    return true;
  }

  bool string(std::string& value) override {
    if (place_ == Place::metadata) {
      metadata.emplace(key_, std::move(value));
      return true;
    }
    if (place_ != Place::tensor || key_ != "dtype") unexpected("a string");
    const std::optional<DType> dtype = dtype_named(value);
    check(dtype.has_value(), "unknown dtype \"{}\"", printable(value));
    tensors.back().dtype = *dtype;
    return true;
  }

  bool start_array(std::size_t) override {
    if (place_ == Place::tensor && key_ == "shape") return go(Place::shape);
    if (place_ == Place::tensor && key_ == "data_offsets") return go(Place::offsets);
    unexpected("an array");
  }

  bool number_unsigned(number_unsigned_t value) override {
    if (place_ != Place::shape && place_ != Place::offsets) unexpected("a number");
    check(value <= kLargestInteger, "{} holds {}, more than 2^48 - 1", key_, value);
    std::vector<std::uint64_t>& list = place_ == Place::shape ? tensors.back().shape : offsets_;
    const std::size_t most = place_ == Place::shape ? kDimensions : 2;
    check(list.size() < most, "more than {} numbers in {}", most, key_);
    list.push_back(value);
    return true;
  }

  bool end_array() override { return go(Place::tensor); }

  bool end_object() override {
    if (place_ == Place::tensor) finish_tensor();
    return go(place_ == Place::file ? Place::outside : Place::file);
  }

  bool number_integer(number_integer_t value) override {
    unexpected(fmt::format("the negative number {}", value));
  }
  bool number_float(number_float_t, const std::string& text) override {
    unexpected(fmt::format("{}, no whole number of 64 bits", printable(text)));
  }
  bool null() override { unexpected("null"); }
  bool boolean(bool) override { unexpected("a boolean"); }
  bool binary(binary_t&) override { unexpected("binary data"); }
  bool parse_error(std::size_t position, const std::string&,
                   const nlohmann::json::exception&) override {
    fail(ErrorCode::malformed, "{}: malformed JSON at byte {} of the header", file_, position);
  }

 private:
  enum class Place { outside, file, metadata, tensor, shape, offsets };

  bool go(Place place) {
    place_ = place;
    return true;
  }

  /// Fails with a message about the tensor being read, made only if it is needed.
  template <typename... Args>
  void check(bool good, fmt::format_string<Args...> format, Args&&... args) const {
    if (!good) [[unlikely]]
      fail(ErrorCode::malformed, "{}: tensor \"{}\": {}", file_, tensor(),
           fmt::format(format, std::forward<Args>(args)...));
  }

  std::string tensor() const { return printable(tensors.back().name); }

  [[noreturn]] bool& unknown_field() const {
    fail(ErrorCode::malformed,
         "{}: tensor \"{}\": expected dtype, shape and data_offsets, found field \"{}\"", file_,
         tensor(), printable(key_));
  }

  [[noreturn]] void unexpected(std::string_view found) const {
    switch (place_) {
      case Place::outside:
        fail(ErrorCode::malformed, "{}: expected the header to be an object, found {}", file_,
             found);
      case Place::metadata:
        fail(ErrorCode::malformed, "{}: __metadata__: expected a string for \"{}\", found {}",
             file_, printable(key_), found);
      case Place::file:
        if (in_metadata_)
          fail(ErrorCode::malformed, "{}: __metadata__: expected an object of strings, found {}",
               file_, found);
        fail(ErrorCode::malformed, "{}: tensor \"{}\": expected an object, found {}", file_,
             tensor(), found);
      default:
        fail(ErrorCode::malformed, "{}: tensor \"{}\": expected {} to be {}, found {}", file_,
             tensor(), key_, key_ == "dtype" ? "a string" : "a list of whole numbers >= 0", found);
    }
  }

  void finish_tensor() {
    check(saw_dtype_ && saw_shape_ && saw_offsets_, "field {} is missing",
          !saw_dtype_   ? "dtype"
          : !saw_shape_ ? "shape"
                        : "data_offsets");
    check(offsets_.size() == 2, "expected two data_offsets, found {}", offsets_.size());
    const auto [begin, end] = std::pair(offsets_[0], offsets_[1]);
    check(begin <= end, "data_offsets begin at {} but end at {}", begin, end);

    TensorEntry& entry = tensors.back();
    std::uint64_t size = std::uint64_t(bits(entry.dtype));
    for (const std::uint64_t dimension : entry.shape)
      check(multiply(size, dimension, size), "its shape overflows 64 bits");
    check(size % 8 == 0, "{} bits of {} are no whole number of bytes", size, name(entry.dtype));
    check(end - begin == size / 8,
          "expected {} bytes for its shape and dtype, found {} in data_offsets", size / 8,
          end - begin);
    entry.offset = begin;
    entry.bytes = size / 8;
  }

  std::string file_;
  Place place_ = Place::outside;
  std::string key_;  ///< the last one
  bool in_metadata_ = false, saw_metadata_ = false;
  bool saw_dtype_ = false, saw_shape_ = false, saw_offsets_ = false;
  std::vector<std::uint64_t> offsets_;
};

/// The text between the length and the data (rules 1 to 6 of formats.md 1.9, as far as bytes tell).
std::string read_header(const File& file, const std::string& name) {
  require(file.size() >= 8, ErrorCode::malformed,
          "{}: expected a safetensors file of at least 8 bytes, found {}", name, file.size());
  std::uint64_t bytes = 0;
  file.read(0, std::as_writable_bytes(std::span(&bytes, 1)));
  require(bytes <= kHeaderBytes, ErrorCode::malformed,
          "{}: expected a safetensors header of at most {} bytes, found {}", name, kHeaderBytes,
          bytes);
  require(bytes <= file.size() - 8, ErrorCode::malformed,
          "{}: expected a safetensors header of {} bytes, found the end of the file after {}", name,
          bytes, file.size() - 8);

  std::string header(std::size_t(bytes), '\0');
  file.read(8, std::as_writable_bytes(std::span(header)));
  const std::size_t invalid = find_invalid_utf8(header);
  require(invalid == std::string::npos, ErrorCode::malformed,
          "{}: expected the header to be UTF-8, found another byte at {}", name, invalid);
  require(header.starts_with('{'), ErrorCode::malformed,
          "{}: expected the header to begin with {{, found {}", name,
          header.empty() ? "nothing" : "\"" + printable(header.substr(0, 1)) + "\"");
  // The parser would take a zero byte for the end of the text.
  require(header.find('\0') == std::string::npos, ErrorCode::malformed,
          "{}: malformed JSON at byte {} of the header: a zero byte", name, header.find('\0'));
  return header;
}

/// Rules 12 and 13: the tensors tile the data, from its first byte to the last of the file.
void check_tiling(std::span<const TensorEntry> tensors, std::uint64_t data_bytes,
                  const std::string& name) {
  std::vector<const TensorEntry*> order;
  order.reserve(tensors.size());
  for (const TensorEntry& entry : tensors) order.push_back(&entry);
  std::sort(order.begin(), order.end(), [](const TensorEntry* a, const TensorEntry* b) {
    return std::pair(a->offset, a->bytes) < std::pair(b->offset, b->bytes);
  });
  std::uint64_t end = 0;
  for (const TensorEntry* entry : order) {
    if (entry->offset != end)
      fail(ErrorCode::malformed,
           "{}: tensor \"{}\": expected its data to begin at {}, found {}: {}", name,
           printable(entry->name), end, entry->offset,
           entry->offset < end ? "tensors overlap" : "a hole between tensors");
    end += entry->bytes;
  }
  require(end == data_bytes, ErrorCode::malformed,
          "{}: expected {} bytes of tensor data, found {}: the file is {}", name, end, data_bytes,
          data_bytes < end ? "truncated" : "too long");
}

}  // namespace

std::string_view name(DType dtype) noexcept { return kDTypes[std::size_t(dtype)].name; }
int bits(DType dtype) noexcept { return kDTypes[std::size_t(dtype)].bits; }

SafetensorsFile::SafetensorsFile(const std::filesystem::path& path) : file_(path) {
  const std::string file = printable(path.native());
  const std::string header = read_header(file_, file);
  HeaderReader reader(file);
  nlohmann::json::sax_parse(header, &reader);
  tensors_ = std::move(reader.tensors);
  metadata_ = std::move(reader.metadata);

  std::sort(tensors_.begin(), tensors_.end(),
            [](const TensorEntry& a, const TensorEntry& b) { return a.name < b.name; });
  for (std::size_t i = 1; i < tensors_.size(); ++i)
    if (tensors_[i - 1].name == tensors_[i].name)
      fail(ErrorCode::malformed, "{}: tensor \"{}\" appears twice", file,
           printable(tensors_[i].name));

  const std::uint64_t data = 8 + header.size();
  check_tiling(tensors_, file_.size() - data, file);
  for (TensorEntry& entry : tensors_) entry.offset += data;
}

const TensorEntry* SafetensorsFile::find(std::string_view name) const noexcept {
  const auto found = std::lower_bound(
      tensors_.begin(), tensors_.end(), name,
      [](const TensorEntry& entry, std::string_view wanted) { return entry.name < wanted; });
  return found != tensors_.end() && found->name == name ? &*found : nullptr;
}

}  // namespace guanaco
