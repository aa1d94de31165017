#pragma once

#include <string>

namespace guanaco {

/// The bytes of a tokenizer.model as LLaMA has it (reference/formats.md 3.1): SentencePiece BPE
/// with byte fallback, `pieces` pieces. The text pieces are made up, but together with the bytes
/// they spell every text. Throws invalid_argument unless 259 <= pieces <= 32000.
std::string synthetic_tokenizer(int pieces);

}  // namespace guanaco
