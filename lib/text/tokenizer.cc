#include <guanaco/tokenizer.h>
#include <sentencepiece_processor.h>

#include <charconv>
#include <exception>
#include <new>
#include <utility>

#include "io/file.h"
#include "support/check.h"
#include "support/utf8.h"
#include "text/protobuf.h"

namespace guanaco {
namespace {

using sentencepiece::SentencePieceProcessor;

constexpr std::uint64_t kLimit = std::uint64_t(64) << 20;  // bytes of a model and of one text
constexpr std::string_view kSpaceSymbol = "\xe2\x96\x81";  // U+2581 stands for a space

/// Throws bad_alloc if sentencepiece's share of `bytes` of input is not to be had. Where memory
/// ends inside sentencepiece its protobuf is left damaged and may end the process: better it ends
/// here. That is likely and no more, for others may take the memory meanwhile.
void require_room(std::uint64_t bytes, std::uint64_t per_byte) {
  constexpr std::uint64_t kAlways = 64 << 10;
  ::operator delete(::operator new(std::size_t(kAlways + bytes * per_byte)));
}
// At its peak, measured: models of 512 to 32000 pieces took 34 bytes for one, UTF-8 at most 290.
constexpr std::uint64_t kPerModelByte = 40, kPerTextByte = 320;

/// What we decide on before sentencepiece, which would print or exit, sees the file. Names and
/// numbers are those of sentencepiece_model.proto.
struct ModelProto {
  std::uint64_t model_type = 1;  // UNIGRAM, where the file says nothing
  bool treat_whitespace_as_suffix = false;
  bool add_dummy_prefix = true;
  bool has_charsmap = false;
  std::string serialized;  // the file without its self-test, whose failures would be printed
};

void read_piece(const std::filesystem::path& file, int id, std::string_view message) {
  ProtobufReader reader(message);
  ProtobufField field;
  while (reader.next(field))
    if (field.number == 1 && field.type == ProtobufField::bytes)
      require(field.contents.find('\0') == std::string_view::npos, ErrorCode::malformed,
              "{}: piece {} holds a NUL character", printable(file.native()), id);
  require(!reader.broken(), ErrorCode::malformed, "{}: piece {} is no protobuf message",
          printable(file.native()), id);
}

void read_trainer(const std::filesystem::path& file, std::string_view message, ModelProto& model) {
  ProtobufReader reader(message);
  ProtobufField field;
  while (reader.next(field)) {
    if (field.type != ProtobufField::varint) continue;
    if (field.number == 3) model.model_type = field.value;
    if (field.number == 24) model.treat_whitespace_as_suffix = field.value != 0;
  }
  require(!reader.broken(), ErrorCode::malformed, "{}: trainer_spec is no protobuf message",
          printable(file.native()));
}

void read_normalizer(const std::filesystem::path& file, std::string_view message,
                     ModelProto& model) {
  ProtobufReader reader(message);
  ProtobufField field;
  while (reader.next(field)) {
    if (field.number == 2 && field.type == ProtobufField::bytes)
      model.has_charsmap |= !field.contents.empty();
    if (field.number == 3 && field.type == ProtobufField::varint)
      model.add_dummy_prefix = field.value != 0;
  }
  require(!reader.broken(), ErrorCode::malformed, "{}: normalizer_spec is no protobuf message",
          printable(file.native()));
}

ModelProto read_model(const std::filesystem::path& file, std::string_view bytes) {
  ModelProto model;
  ProtobufReader reader(bytes);
  ProtobufField field;
  int pieces = 0;
  while (reader.next(field)) {
    constexpr std::uint64_t kPieces = 1, kTrainer = 2, kNormalizer = 3, kSelfTest = 4,
                            kDenormalizer = 5;
    if (field.number == kSelfTest) continue;
    model.serialized += field.wire;
    if (field.type != ProtobufField::bytes) continue;
    if (field.number == kPieces) read_piece(file, pieces++, field.contents);
    if (field.number == kTrainer) read_trainer(file, field.contents, model);
    if (field.number == kNormalizer) read_normalizer(file, field.contents, model);
    if (field.number == kDenormalizer) {
      ModelProto denormalizer;  // the same message; only its charsmap is of interest
      read_normalizer(file, field.contents, denormalizer);
      model.has_charsmap |= denormalizer.has_charsmap;
    }
  }
  require(!reader.broken() && pieces > 0, ErrorCode::malformed,
          "{}: expected a SentencePiece model, found {}", printable(file.native()),
          bytes.empty()     ? "an empty file"
          : pieces > 0      ? "one that is cut short or damaged"
          : reader.broken() ? "other data"
                            : "no pieces");
  require(model.model_type == 2, ErrorCode::unsupported,
          "{}: expected model_type 2 (BPE), found {}", printable(file.native()),
          model.model_type == 1 ? "1 (UNIGRAM)" : fmt::to_string(model.model_type));
  require(!model.has_charsmap, ErrorCode::unsupported,
          "{}: expected no precompiled_charsmap, found one", printable(file.native()));
  require(!model.treat_whitespace_as_suffix, ErrorCode::unsupported,
          "{}: expected spaces before words, found treat_whitespace_as_suffix",
          printable(file.native()));
  return model;
}

/// sentencepiece quotes pieces in its messages; ours are one line of UTF-8.
std::string one_line(std::string text) {
  for (char& c : text)
    if (c < ' ' || c > '~') c = '?';
  return text;
}

/// What `call` of sentencepiece returns. Its protobuf throws only where the process has another one
/// in its global scope, whose functions it then got instead of its own.
template <typename Call>
auto beside_other_protobufs(const std::string& file, Call&& call) {
  try {
    return call();
  } catch (const Error&) {
    throw;
  } catch (const std::bad_alloc&) {
    throw;
  } catch (const std::exception& thrown) {
    fail(
        ErrorCode::unsupported,
        "{}: sentencepiece met another protobuf than its own in this process: expected "
        "libguanaco.so.1 to be opened by dlopen with RTLD_DEEPBIND (README, Use from C); found: {}",
        file, one_line(std::string(thrown.what()).substr(0, 160)));
  }
}

void load_processor(const std::filesystem::path& file, const std::string& serialized,
                    SentencePieceProcessor& processor) {
  const auto status = processor.LoadFromSerializedProto({serialized.data(), serialized.size()});
  require(status.ok(), ErrorCode::malformed, "{}: sentencepiece refuses it: {}",
          printable(file.native()), one_line(status.ToString()));
}

/// The bytes a token adds to a text.
std::string piece_bytes(const SentencePieceProcessor& processor, int id) {
  if (processor.IsControl(id)) return {};
  if (processor.IsUnknown(id)) {
    std::string surface;
    processor.Decode(std::vector<int>{id}, &surface).IgnoreError();
    return surface;
  }
  const std::string& piece = processor.IdToPiece(id);
  if (processor.IsByte(id)) {  // "<0x0A>", which sentencepiece has checked
    unsigned value = 0;
    std::from_chars(piece.data() + 3, piece.data() + 5, value, 16);
    return {char(value)};
  }
  std::string text;
  for (std::size_t i = 0; i < piece.size();) {
    const bool space = std::string_view(piece).substr(i).starts_with(kSpaceSymbol);
    text += space ? ' ' : piece[i];
    i += space ? kSpaceSymbol.size() : 1;
  }
  return text;
}

}  // namespace

struct Tokenizer::Impl {
  std::string file;                     // for messages
  SentencePieceProcessor whole;         // puts a space before the first word
  SentencePieceProcessor continuation;  // the same model, but does not
  std::vector<std::string> pieces;      // [size] what each token adds to a text
  bool drops_first_space = true;
  TokenId bos = -1, eos = -1;

  void append_ids(const SentencePieceProcessor& processor, std::string_view text,
                  std::vector<TokenId>& ids) const {
    require(text.size() <= kLimit, ErrorCode::invalid_argument,
            "text: expected at most {} bytes, found {}", kLimit, text.size());
    require_room(text.size(), kPerTextByte);
    std::vector<int> found;
    const auto status = beside_other_protobufs(file, [&] {
      return processor.Encode({text.data(), text.size()}, &found);
    });
    // Happens where a control piece is a single character, which then may not stand in a text.
    require(status.ok(), ErrorCode::malformed, "{}: sentencepiece cannot encode a text with it: {}",
            file, one_line(status.ToString()));
    ids.insert(ids.end(), found.begin(), found.end());
  }
};

Tokenizer::Tokenizer(std::shared_ptr<const Impl> impl) : impl_(std::move(impl)) {}

Tokenizer Tokenizer::load(const std::filesystem::path& file) {
  ModelProto model = read_model(file, read_text(file, kLimit));
  require_room(model.serialized.size(), kPerModelByte);
  return beside_other_protobufs(printable(file.native()), [&] {
    auto impl = std::make_shared<Impl>();
    impl->file = printable(file.native());
    impl->drops_first_space = model.add_dummy_prefix;
    load_processor(file, model.serialized, impl->whole);
    // Concatenating serialised messages merges them: normalizer_spec { add_dummy_prefix: false }.
    model.serialized += std::string_view("\x1a\x02\x18\x00", 4);
    load_processor(file, model.serialized, impl->continuation);
    impl->bos = impl->whole.bos_id();
    impl->eos = impl->whole.eos_id();
    const int size = impl->whole.GetPieceSize();
    for (int id = 0; id < size; ++id) impl->pieces.push_back(piece_bytes(impl->whole, id));
    return Tokenizer(std::move(impl));
  });
}

std::vector<TokenId> Tokenizer::encode(std::string_view text, bool begin) const {
  std::vector<TokenId> ids;
  if (begin && bos() >= 0) ids.push_back(bos());
  impl_->append_ids(impl_->whole, text, ids);
  return ids;
}

std::vector<TokenId> Tokenizer::encode_continuation(std::string_view text) const {
  std::vector<TokenId> ids;
  impl_->append_ids(impl_->continuation, text, ids);
  return ids;
}

std::string Tokenizer::decode(std::span<const TokenId> tokens) const {
  std::string bytes;
  for (TokenId token : tokens) bytes += piece(token);
  std::string_view rest = bytes;
  if (impl_->drops_first_space && rest.starts_with(' ')) rest.remove_prefix(1);
  std::string text;
  while (!rest.empty()) {
    const Utf8Start start = utf8_start(rest);
    const bool good = start.kind == Utf8Start::complete;
    text += good ? rest.substr(0, start.length) : kReplacementCharacter;
    rest.remove_prefix(good ? start.length : 1);
  }
  return text;
}

std::string_view Tokenizer::piece(TokenId token) const noexcept {
  if (token < 0 || token >= size()) return {};
  return impl_->pieces[std::size_t(token)];
}

int Tokenizer::size() const noexcept { return int(impl_->pieces.size()); }
TokenId Tokenizer::bos() const noexcept { return impl_->bos; }
TokenId Tokenizer::eos() const noexcept { return impl_->eos; }

}  // namespace guanaco
