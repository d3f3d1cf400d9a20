// Unicode's normalization form C: a letter and its accent as one character wherever there is one (Unicode Standard Annex
// 15). What GPT-NeoX's tokenizer does to a text before anything else.
#pragma once

#include <string>
#include <string_view>

namespace lnfree {

// `text` in form C: `text` itself if that is its form already, else `storage`, which is filled with it. Bytes that are no
// UTF-8 stay as they are, and nothing joins across them. utf8proc does it, for the characters that a frozen table lists
// (nfc_characters.h): what Unicode assigned later stays as it is, as in Hugging Face's tokenizers, whatever edition of
// Unicode the machine's utf8proc has; about older ones no edition changes (Unicode's stability policy). Any number of
// threads may call it.
std::string_view to_nfc(std::string_view text, std::string& storage);

}  // namespace lnfree
