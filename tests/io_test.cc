#include <algorithm>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <string>
#include <utility>
#include <vector>

#include <fcntl.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <doctest/doctest.h>
#include <fmt/format.h>
#include <guanaco/error.h>
#include <nlohmann/json.hpp>

#include "io/json.h"
#include "io/safetensors.h"
#include "io/safetensors_writer.h"
#include "support/utf8.h"
#include "synthetic.h"

using namespace guanaco;

namespace {

struct Failure {
  ErrorCode code;
  std::string message;
};

/// The error that f throws; anything else fails the test.
template <typename F>
Failure failure_of(F&& f) {
  try {
    f();
  } catch (const Error& error) {
    const std::string message = error.what();
    CHECK_MESSAGE(message.find('\n') == std::string::npos, message);
    CHECK_MESSAGE(find_invalid_utf8(message) == std::string::npos, message);
    return {error.code(), message};
  }
  FAIL("expected an error");
  return {};
}

bool contains(const std::string& text, std::string_view part) {
  return text.find(part) != std::string::npos;
}

std::filesystem::path write_file(const std::filesystem::path& path, std::string_view bytes) {
  std::ofstream(path, std::ios::binary).write(bytes.data(), std::streamsize(bytes.size()));
  return path;
}

/// A file of this header and `data` bytes of tensors.
std::string with_header(std::string_view header, std::size_t data = 0) {
  const std::uint64_t length = header.size();
  std::string bytes(reinterpret_cast<const char*>(&length), sizeof length);
  return bytes.append(header).append(data, '\1');
}

/// The first `length` bytes of a file that claims a header of `claimed`.
std::string with_length(std::uint64_t claimed, std::size_t rest) {
  return std::string(reinterpret_cast<const char*>(&claimed), sizeof claimed).append(rest, '{');
}

std::string tensor(std::string_view name, std::string_view dtype, std::string_view shape,
                   std::string_view offsets) {
  return fmt::format(R"("{}":{{"dtype":"{}","shape":{},"data_offsets":{}}})", name, dtype, shape,
                     offsets);
}

const std::string kGood = tensor("a", "F16", "[2]", "[0,4]");

}  // namespace

TEST_CASE("malformed safetensors: every rule of the format has its own message") {
  struct Case {
    const char* rule;
    std::string bytes;
    const char* message;
  };
  const std::string deep = std::string(100'000, '[') + std::string(100'000, ']');
  const std::string many_ones = nlohmann::json(std::vector<int>(33, 1)).dump();
  const std::vector<Case> cases = {
      {"1 short", "1234567", "at least 8 bytes, found 7"},
      {"1 empty", "", "at least 8 bytes, found 0"},
      {"2 huge header", with_length(100'000'001, 10), "at most 100000000 bytes, found 100000001"},
      {"2 header of 2^64 - 1", with_length(~std::uint64_t(0), 10), "at most 100000000 bytes"},
      {"3 header past the end", with_length(1000, 10),
       "1000 bytes, found the end of the file after 10"},
      {"3 header one past the end", with_length(11, 10), "11 bytes, found the end"},
      {"4 not UTF-8", with_header("{\"a\xff\":{}}"), "UTF-8, found another byte at 3"},
      {"4 overlong UTF-8", with_header("{\"\xc0\xaf\":{}}"), "UTF-8, found another byte at 2"},
      {"4 surrogate", with_header("{\"\xed\xa0\x80\":{}}"), "UTF-8, found another byte at 2"},
      {"5 nothing", with_header(""), "begin with {, found nothing"},
      {"5 a space first", with_header(" {}"), "begin with {, found \" \""},
      {"5 an array", with_header("[]"), "begin with {, found \"[\""},
      {"6 cut short", with_header("{\"a\":"), "malformed JSON at byte"},
      {"6 garbage behind", with_header("{}x"), "malformed JSON at byte 3"},
      {"6 a second object", with_header("{}{}"), "malformed JSON at byte 3"},
      {"6 zero byte behind", with_header(std::string_view("{}\0x", 4)), "zero byte"},
      {"6 trailing comma", with_header("{" + kGood + ",}", 4), "malformed JSON at byte"},
      {"6 lone surrogate", with_header(R"({"\ud800":{}})"), "malformed JSON at byte"},
      {"6 deep", with_header("{\"a\":" + deep + "}"),
       "tensor \"a\": expected an object, found an array"},
      {"6 deep shape", with_header(R"({"a":{"shape":)" + deep + "}}"),
       "expected shape to be a list"},
      {"6 deep objects", with_header(R"({"a":{"dtype":{"a":{}}}})"),
       "expected dtype to be a string"},
      {"7 tensor twice", with_header("{" + kGood + "," + kGood + "}", 4),
       "tensor \"a\" appears twice"},
      {"7 tensor twice by escape",
       with_header("{" + kGood + "," + tensor("\\u0061", "F16", "[0]", "[4,4]") + "}", 4),
       "tensor \"a\" appears twice"},
      {"7 field twice", with_header(R"({"a":{"dtype":"F16","dtype":"F16"}})"),
       "field \"dtype\" appears twice"},
      {"7 metadata twice", with_header(R"({"__metadata__":{},"__metadata__":{}})"),
       "__metadata__ appears twice"},
      {"7 metadata key twice", with_header(R"({"__metadata__":{"k":"1","k":"2"}})"),
       "key \"k\" appears twice"},
      {"8 no dtype", with_header(R"({"a":{"shape":[],"data_offsets":[0,4]}})", 4),
       "field dtype is missing"},
      {"8 no shape", with_header(R"({"a":{"dtype":"F32","data_offsets":[0,4]}})", 4),
       "field shape is missing"},
      {"8 no offsets", with_header(R"({"a":{"dtype":"F32","shape":[]}})", 4),
       "field data_offsets is missing"},
      {"8 another field", with_header(R"({"a":{"dtype":"F32","strides":[1]}})"),
       "found field \"strides\""},
      {"8 null tensor", with_header(R"({"a":null})"),
       "tensor \"a\": expected an object, found null"},
      {"8 dtype a number", with_header(R"({"a":{"dtype":1}})"),
       "expected dtype to be a string, found a number"},
      {"8 shape a string", with_header(R"({"a":{"shape":"x"}})"), "expected shape to be a list"},
      {"8 shape of true", with_header(R"({"a":{"shape":[true]}})"), "found a boolean"},
      {"8 one offset", with_header("{" + tensor("a", "F16", "[2]", "[0]") + "}", 4),
       "two data_offsets, found 1"},
      {"8 three offsets", with_header("{" + tensor("a", "F16", "[2]", "[0,4,4]") + "}", 4),
       "more than 2 numbers in data_offsets"},
      {"8 negative", with_header("{" + tensor("a", "F16", "[-2]", "[0,4]") + "}", 4),
       "found the negative number -2"},
      {"8 fraction", with_header("{" + tensor("a", "F16", "[2.0]", "[0,4]") + "}", 4),
       "2.0, no whole number"},
      {"8 exponent", with_header("{" + tensor("a", "F16", "[2]", "[0,4e0]") + "}", 4),
       "4e0, no whole number"},
      {"8 integer of 2^48",
       with_header("{" + tensor("a", "F16", "[281474976710656]", "[0,4]") + "}", 4),
       "more than 2^48 - 1"},
      {"8 integer of 2^64 - 2",
       with_header("{" + tensor("a", "F16", "[18446744073709551614]", "[0,4]") + "}", 4),
       "more than 2^48 - 1"},
      {"8 integer of 2^63 - 1",
       with_header("{" + tensor("a", "F16", "[9223372036854775807,2]", "[0,4]") + "}", 4),
       "more than 2^48 - 1"},
      {"8 integer past 2^64",
       with_header("{" + tensor("a", "F16", "[2]", "[0,99999999999999999999]") + "}", 4),
       "no whole number of 64 bits"},
      {"8 unknown dtype", with_header("{" + tensor("a", "F99", "[2]", "[0,4]") + "}", 4),
       "unknown dtype \"F99\""},
      {"9 begin after end", with_header("{" + tensor("a", "F16", "[2]", "[4,0]") + "}", 4),
       "begin at 4 but end at 0"},
      {"9 product overflows",
       with_header("{" + tensor("a", "U8", "[70368744177664,70368744177664]", "[0,4]") + "}", 4),
       "overflows 64 bits"},
      {"9 bits overflow",
       with_header("{" + tensor("a", "F64", "[4294967296,134217728]", "[0,4]") + "}", 4),
       "overflows 64 bits"},
      {"10 half a byte", with_header("{" + tensor("a", "F4", "[3]", "[0,2]") + "}", 2),
       "12 bits of F4 are no whole number of bytes"},
      {"11 too few bytes", with_header("{" + tensor("a", "F16", "[2]", "[0,3]") + "}", 3),
       "expected 4 bytes for its shape and dtype, found 3"},
      {"11 too many bytes", with_header("{" + tensor("a", "F16", "[]", "[0,4]") + "}", 4),
       "expected 2 bytes for its shape and dtype, found 4"},
      {"12 does not start at 0", with_header("{" + tensor("a", "U8", "[2]", "[2,4]") + "}", 4),
       "begin at 0, found 2: a hole"},
      {"12 hole", with_header("{" + kGood + "," + tensor("b", "U8", "[1]", "[5,6]") + "}", 6),
       "tensor \"b\": expected its data to begin at 4, found 5: a hole"},
      {"12 overlap", with_header("{" + kGood + "," + tensor("b", "U8", "[4]", "[2,6]") + "}", 6),
       "tensor \"b\": expected its data to begin at 4, found 2: tensors overlap"},
      {"12 same bytes twice",
       with_header("{" + kGood + "," + tensor("b", "F16", "[2]", "[0,4]") + "}", 4),
       "tensors overlap"},
      {"12 empty inside another",
       with_header("{" + kGood + "," + tensor("b", "F16", "[0]", "[2,2]") + "}", 4),
       "tensors overlap"},
      {"13 truncated", with_header("{" + kGood + "}", 3),
       "expected 4 bytes of tensor data, found 3: the file is truncated"},
      {"13 too long", with_header("{" + kGood + "}", 5),
       "expected 4 bytes of tensor data, found 5: the file is too long"},
      {"13 no tensors but data", with_header("{}", 1), "expected 0 bytes of tensor data, found 1"},
      {"14 metadata number", with_header(R"({"__metadata__":{"k":1}})"),
       "__metadata__: expected a string for \"k\", found a number"},
      {"14 metadata null", with_header(R"({"__metadata__":{"k":null}})"),
       "__metadata__: expected a string for \"k\", found null"},
      {"14 metadata nested", with_header(R"({"__metadata__":{"k":{"a":"b"}}})"),
       "__metadata__: expected a string for \"k\", found an object"},
      {"14 metadata a string", with_header(R"({"__metadata__":"x"})"),
       "__metadata__: expected an object of strings"},
      {"a long name",
       with_header("{" + tensor(std::string(1025, 'n'), "F16", "[2]", "[0,4]") + "}", 4),
       "at most 1024 bytes, found one of 1025"},
      {"many dimensions", with_header("{" + tensor("a", "U8", many_ones, "[0,1]") + "}", 1),
       "more than 32 numbers in shape"},
      {"a name with a line break", with_header(R"({"a\n\u0007":null})"), "tensor \"a\\x0a\\x07\""},
  };
  const TemporaryFolder folder;
  for (const Case& malformed : cases) {
    CAPTURE(malformed.rule);
    const auto path = write_file(folder.path() / "bad.safetensors", malformed.bytes);
    const Failure failure = failure_of([&] { SafetensorsFile file(path); });
    CHECK(failure.code == ErrorCode::malformed);
    CHECK_MESSAGE(contains(failure.message, malformed.message), failure.message);
    CHECK_MESSAGE(contains(failure.message, path.string()), failure.message);
  }
}

TEST_CASE("safetensors: a million and one tensors are refused") {
  std::string header = "{";
  for (int i = 0; i <= 1'000'000; ++i)
    header += fmt::format(R"("{}":{{"dtype":"U8","shape":[0],"data_offsets":[0,0]}},)", i);
  header.back() = '}';
  const TemporaryFolder folder;
  const auto path = write_file(folder.path() / "many.safetensors", with_header(header));
  const Failure failure = failure_of([&] { SafetensorsFile file(path); });
  CHECK_MESSAGE(contains(failure.message, "more than 1000000 tensors"), failure.message);
}

TEST_CASE("safetensors: 65536 entries of metadata are read and one more is refused") {
  const TemporaryFolder folder;
  const auto open = [&](int entries) {
    std::string header = R"({"__metadata__":{)";
    for (int i = 0; i < entries; ++i) header += fmt::format(R"("{}":"",)", i);
    header.back() = '}';
    return SafetensorsFile(
        write_file(folder.path() / "metadata.safetensors", with_header(header + "}")));
  };
  CHECK(open(65'536).metadata().size() == 65'536);
  const Failure failure = failure_of([&] { open(65'537); });
  CHECK(failure.code == ErrorCode::malformed);
  CHECK_MESSAGE(contains(failure.message, "__metadata__: holds more than 65536 entries"),
                failure.message);
}

TEST_CASE("safetensors: odd but valid files are read") {
  const TemporaryFolder folder;
  const auto open = [&](std::string_view header, std::size_t data) {
    return SafetensorsFile(
        write_file(folder.path() / "good.safetensors", with_header(header, data)));
  };
  CHECK(open("{}", 0).tensors().empty());
  CHECK(open("{}      ", 0).tensors().empty());
  CHECK(open(R"({"__metadata__":{}})", 0).metadata().empty());
  CHECK(open(R"({"__metadata__":{"format":"pt"}})", 0).metadata().at("format") == "pt");

  const SafetensorsFile scalar = open("{" + tensor("s", "F32", "[]", "[0,4]") + "}", 4);
  CHECK(scalar.find("s")->shape.empty());
  CHECK(scalar.find("s")->bytes == 4);

  const std::string empty = "{" + tensor("e", "F32", "[3,0,281474976710655]", "[0,0]") + "}";
  CHECK(open(empty, 0).find("e")->bytes == 0);

  // Entries out of order, an F16 tensor at an odd offset, an empty one between two others.
  const std::string header = "{" + tensor("z", "F16", "[2]", "[1,5]") + "," +
                             tensor("m", "U8", "[0]", "[1,1]") + "," +
                             tensor("b", "BOOL", "[1]", "[0,1]") + "}  ";
  const SafetensorsFile file = open(header, 5);
  REQUIRE(file.tensors().size() == 3);
  CHECK(file.tensors()[0].name == "b");
  CHECK(file.find("z")->offset == 8 + header.size() + 1);
  CHECK(file.find("z")->dtype == DType::f16);
  CHECK(file.find("zz") == nullptr);
  CHECK(file.find("") == nullptr);

  for (const auto& [dtype, bytes] : std::vector<std::pair<const char*, int>>{
           {"BOOL", 8},    {"U8", 8},      {"I8", 8},      {"U16", 16},        {"I16", 16},
           {"F16", 16},    {"BF16", 16},   {"U32", 32},    {"I32", 32},        {"F32", 32},
           {"C64", 64},    {"U64", 64},    {"I64", 64},    {"F64", 64},        {"F8_E5M2", 8},
           {"F8_E4M3", 8}, {"F8_E8M0", 8}, {"F6_E2M3", 6}, {"F8_E5M2FNUZ", 8}, {"F8_E4M3FNUZ", 8},
           {"F6_E3M2", 6}, {"F4", 4}}) {
    const std::string one = "{" + tensor("t", dtype, "[8]", fmt::format("[0,{}]", bytes)) + "}";
    const SafetensorsFile typed = open(one, std::size_t(bytes));
    CHECK(name(typed.find("t")->dtype) == dtype);
    CHECK(bits(typed.find("t")->dtype) == bytes);
  }
}

TEST_CASE("files: what is no regular file is refused without waiting") {
  const TemporaryFolder folder;
  const auto code = [](const std::filesystem::path& path, const char* message) {
    const Failure failure = failure_of([&] { File file(path); });
    CHECK_MESSAGE(contains(failure.message, message), failure.message);
    return failure.code;
  };
  CHECK(code("", "expected the path of a file") == ErrorCode::invalid_argument);
  CHECK(code(std::string("a\0b", 3), "zero byte") == ErrorCode::invalid_argument);
  CHECK(code(folder.path(), "found a folder") == ErrorCode::invalid_argument);
  CHECK(code("/dev/zero", "found a device") == ErrorCode::invalid_argument);
  REQUIRE(mkfifo((folder.path() / "pipe").c_str(), 0600) == 0);
  CHECK(code(folder.path() / "pipe", "found a pipe") == ErrorCode::invalid_argument);
  CHECK(code(folder.path() / "none", "No such file") == ErrorCode::not_found);
  write_file(folder.path() / "file", "text");
  CHECK(code(folder.path() / "file" / "below", "Not a directory") == ErrorCode::not_found);
  std::filesystem::create_symlink("loop", folder.path() / "loop");
  CHECK(code(folder.path() / "loop", "symbolic links") == ErrorCode::not_found);
  CHECK(code(folder.path() / std::string(5000, 'n'), "too long") == ErrorCode::not_found);
  CHECK(code(folder.path() / "line\nbreak\xff", "line\\x0abreak\\xff") == ErrorCode::not_found);
}

TEST_CASE("files: reading past the end is an error and a shrinking file is too") {
  const TemporaryFolder folder;
  const auto path = write_file(folder.path() / "file", "0123456789");
  const File file(path);
  CHECK(file.size() == 10);
  std::byte four[4];
  file.read(6, four);
  CHECK(std::memcmp(four, "6789", 4) == 0);
  CHECK(failure_of([&] { file.read(7, four); }).code == ErrorCode::malformed);
  CHECK(failure_of([&] { file.read(~std::uint64_t(0) - 1, four); }).code == ErrorCode::malformed);
  std::filesystem::resize_file(path, 8);
  CHECK(contains(failure_of([&] { file.read(6, four); }).message, "found the end at 8"));

  CHECK(read_text(path, 8) == "01234567");
  CHECK(contains(failure_of([&] { read_text(path, 7); }).message, "at most 7 bytes, found 8"));
}

TEST_CASE("json: only one well-formed value without duplicate keys is taken") {
  CHECK(to_text(parse_json(" {\"b\": [1, -2.5, \"\\u00e9\\n\", null],\t\"a\": {}, \"\": []}\r\n",
                           "x")) == "{\"\":[],\"a\":{},\"b\":[1,-2.5,\"\u00e9\\n\",null]}");
  CHECK(to_text(parse_json("[18446744073709551615, -9223372036854775808, 1e2, true]", "x")) ==
        "[18446744073709551615,-9223372036854775808,100.0,true]");
  CHECK(parse_json("7", "x") == parse_json("7.0", "x"));
  CHECK(parse_json("7", "x") != parse_json("\"7\"", "x"));
  CHECK(parse_json("{\"a\":[1]}", "x") == parse_json("{\"a\":[1.0]}", "x"));
  CHECK(parse_json(R"({"a":{"k":1},"b":{"k":2}})", "x").find("b")->find("k")->number() == 2);
  const auto message = [](std::string_view text) {
    const Failure failure = failure_of([&] { parse_json(text, "config.json"); });
    CHECK(failure.code == ErrorCode::malformed);
    CHECK(failure.message.starts_with("config.json: "));
    return failure.message;
  };
  CHECK(contains(message(""), "line 1, column 1"));
  CHECK(contains(message("{\n  \"a\": 1,\n  b\n}"), "line 3, column 3"));
  CHECK(contains(message("[1, 2"), "line 1, column 6: unexpected end of input; expected ']'"));
  CHECK(contains(message("[1\n2]"), "line 2, column 1: unexpected number literal; expected ']'"));
  CHECK(contains(message("[tru\n]"), "line 1, column 5: invalid literal; last read: '[tru"));
  CHECK(message("[\"" + std::string(100'000, 'x')).size() < 400);
  CHECK(contains(message("{} {}"), "malformed"));
  CHECK(contains(message("{\"a\":1}x"), "malformed"));
  CHECK(contains(message(std::string_view("{}\0{}", 5)), "zero byte at 2"));
  CHECK(contains(message("{\"a\":1,\"a\":1}"), "key \"a\" appears twice"));
  CHECK(contains(message("{\"a\":1,\"\\u0061\":1}"), "key \"a\" appears twice"));
  CHECK(contains(message("[{\"b\":{\"a\":1,\"a\":1}}]"), "key \"a\" appears twice"));
  CHECK(contains(message("\"\xff\""), "UTF-8"));
  CHECK(contains(message("[1,]"), "malformed"));
  CHECK(contains(message("[NaN]"), "malformed"));
  CHECK(contains(message("// a comment\n1"), "malformed"));
  message("1e999");
  const auto nested = [](int depth) {
    return std::string(std::size_t(depth), '[') + std::string(std::size_t(depth), ']');
  };
  CHECK(to_text(parse_json(nested(32), "x")) == nested(32));
  CHECK(contains(message(nested(33)), "more than 32 levels"));
  CHECK(contains(message(nested(1'000'000)), "more than 32 levels"));
  std::string many = "[0";
  for (int i = 0; i < 1'000'000; ++i) many += ",0";
  CHECK(contains(message(many + "]"), "more than 1000000 values"));

  const TemporaryFolder folder;
  CHECK(failure_of([&] { read_json(folder.path() / "none.json"); }).code == ErrorCode::not_found);
  const auto path = write_file(folder.path() / "c.json", "{");
  CHECK(contains(failure_of([&] { read_json(path); }).message, path.string()));
}

TEST_CASE("safetensors writer: what is written is read back") {
  const TemporaryFolder folder;
  const auto path = folder.path() / "out.safetensors";
  const std::vector<SafetensorsWriter::Tensor> tensors = {
      {"b \"quoted\" \u00e9", DType::f16, {2, 3}},
      {"a", DType::i32, {1}},
      {"scalar", DType::f32, {}},
      {"none", DType::f32, {4, 0}}};
  SafetensorsWriter writer(path, tensors, {{"format", "pt"}, {"key", "a \"value\""}});
  std::string data = "0123456789abABCDwxyz";
  writer.write(std::as_bytes(std::span(data)).first(13));
  writer.write(std::as_bytes(std::span(data)).subspan(13));
  CHECK_FALSE(std::filesystem::exists(path));
  writer.finish();

  const SafetensorsFile file(path);
  CHECK(file.metadata().at("key") == "a \"value\"");
  REQUIRE(file.tensors().size() == 4);
  CHECK(file.tensors()[0].offset % 4 == 0);
  std::string read(12, ' ');
  file.file().read(file.find(tensors[0].name)->offset, std::as_writable_bytes(std::span(read)));
  CHECK(read == "0123456789ab");
  CHECK(file.find("a")->shape == std::vector<std::uint64_t>{1});
  CHECK(file.find("none")->bytes == 0);
  CHECK(std::distance(std::filesystem::directory_iterator(folder.path()), {}) == 1);
  CHECK(failure_of([&] { writer.finish(); }).code == ErrorCode::invalid_argument);
  CHECK(failure_of([&] { writer.write(std::as_bytes(std::span(data))); }).code ==
        ErrorCode::invalid_argument);
}

TEST_CASE("safetensors writer: too many or too few bytes and bad layouts are refused") {
  const TemporaryFolder folder;
  const auto path = folder.path() / "out.safetensors";
  const auto open = [&](std::vector<SafetensorsWriter::Tensor> tensors) {
    return failure_of([&] { SafetensorsWriter writer(path, tensors); });
  };
  CHECK(contains(open({{"a", DType::u8, {1}}, {"a", DType::u8, {1}}}).message, "a new name"));
  CHECK(contains(open({{"__metadata__", DType::u8, {1}}}).message, "a new name"));
  CHECK(contains(open({{"\xff", DType::u8, {1}}}).message, "of UTF-8"));
  CHECK(contains(open({{std::string(1025, 'n'), DType::u8, {1}}}).message, "at most 1024"));
  for (const auto& [key, value] : {std::pair("k\xff", "v"), std::pair("k", "v\xc3")}) {
    const Failure failure = failure_of([&] { SafetensorsWriter writer(path, {}, {{key, value}}); });
    CHECK(failure.code == ErrorCode::invalid_argument);
    CHECK(contains(failure.message, "metadata \"k"));
    CHECK(contains(failure.message, "expected UTF-8"));
  }
  CHECK(contains(open({{"a", DType::f4, {3}}}).message, "12 bits"));
  CHECK(contains(open({{"a", DType::u8, {1ull << 40, 1ull << 40}}}).message, "overflows"));
  {
    const std::vector<SafetensorsWriter::Tensor> tensors = {{"a", DType::u8, {4}}};
    SafetensorsWriter writer(path, tensors);
    const std::string data = "01234";
    writer.write(std::as_bytes(std::span(data)).first(3));
    CHECK(failure_of([&] { writer.finish(); }).code == ErrorCode::invalid_argument);
    CHECK(failure_of([&] { writer.write(std::as_bytes(std::span(data))); }).code ==
          ErrorCode::invalid_argument);
  }
  CHECK(std::filesystem::is_empty(folder.path()));
  const auto nowhere = folder.path() / "none" / "out.safetensors";
  CHECK(failure_of([&] { SafetensorsWriter writer(nowhere, {}); }).code == ErrorCode::not_found);
}

TEST_CASE("safetensors writer: a full disk is one error and leaves nothing behind") {
  const TemporaryFolder folder;
  const pid_t child = fork();
  REQUIRE(child >= 0);
  if (child == 0) {  // a limit on file sizes stands for the full disk
    signal(SIGXFSZ, SIG_IGN);
    const rlimit limit = {100'000, 100'000};
    setrlimit(RLIMIT_FSIZE, &limit);
    try {
      write_synthetic(folder.path(), {});
    } catch (const Error& error) {
      _exit(error.code() == ErrorCode::out_of_memory &&
                    std::strstr(error.what(), "cannot write byte")
                ? 0
                : 1);
    }
    _exit(2);
  }
  int status = 0;
  REQUIRE(waitpid(child, &status, 0) == child);
  CHECK(WIFEXITED(status));
  CHECK(WEXITSTATUS(status) == 0);
  CHECK(std::filesystem::is_empty(folder.path()));
}
