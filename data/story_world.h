// The story world: an endless English-like text of our own for demos and tests that must run without a download.
//
// Every story keeps a small world: who is where, who holds which thing, what lies in which box, who likes what, and
// what each person believes about the things (what that person saw or was told last). Sentences are events that change
// the world, or claims about it that are true at that point. So a good part of the text can only be predicted from
// much earlier sentences: where the lamp is, where Bert will look for it, what Kate does in her free time. Two or
// three times per story a sentence of the indirect-object kind appears ("When Mary and John went to the market, John
// gave a drum to Mary."), the sentence that the interpretability analyses need.
//
// The text is ASCII, the same on every platform (integer arithmetic only), and of moderate entropy.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace lnfree {

namespace story {

// ---------------------------------------------------------------------------------------------------------------------
// Vocabulary. Names and things have four letters, places six, names differ in their first letter, and things start
// with a consonant: so two indirect-object prompts of one form are equal in length and in the position of every word,
// and for a byte model the first byte of the answer decides which name it is.

struct Name {
    const char* text;
    bool she;
};

const std::vector<Name>& names();

// A place or a spot: a noun with the preposition that English wants before it.
struct Where {
    const char* preposition;
    const char* noun;
};

const std::vector<Where>& places();

const std::vector<Where>& spots();

const std::vector<const char*>& things();

const std::vector<const char*>& adjectives();

const std::vector<const char*>& animals();

const std::vector<const char*>& topics();

// What a person likes, and what someone who likes it does when nothing else happens.
struct Liking {
    const char* noun;
    const char* habit;
};

const std::vector<Liking>& likings();

// The weather of a story: how it is told first, and how it is told again.
struct Weather {
    const char* first;
    const char* again;
};

const std::vector<Weather>& weathers();

// The indirect-object sentences. $A and $B are the two people in the order of their first mention, $S who gives, $I
// who receives, $D the thing, $Q "the market", $P "at the market". Every form ends with the receiver.
struct IndirectForm {
    const char* text;
    enum Setting { going, being, meeting } setting;  // what the first clause says about where the two are
};

const std::vector<IndirectForm>& indirect_forms();

// "in the garden".
std::string there(Where where);

// ---------------------------------------------------------------------------------------------------------------------
// Random choices

// ---------------------------------------------------------------------------------------------------------------------
// One story

}  // namespace story

// ---------------------------------------------------------------------------------------------------------------------
// What others use

// An endless series of stories. Story i depends on (seed, i) only, on no platform and no earlier story.
class StoryWorld {
  public:
    explicit StoryWorld(uint64_t seed) : seed_(seed) {}

    // One document: a few paragraphs of 400 to 1500 bytes together, ASCII, one line per paragraph, ending with a newline.
    std::string next_story();

  private:
    uint64_t seed_;
    uint64_t next_ = 0;
};

// A sentence of the indirect-object kind that ends right before its last word, twice.
struct IndirectObjectPrompt {
    std::string clean;         // "When Mary and John went to the market, John gave a drum to " with the trailing space
    std::string corrupted;     // the same with the other giver: "..., Mary gave a drum to "
    std::string correct;       // what follows `clean`: "Mary"
    std::string wrong;         // what follows `corrupted`: "John"
    size_t form = 0;           // which of story::indirect_forms(); prompts of one form are aligned byte by byte
    bool giver_first = false;  // BABA (the giver is named first) rather than ABBA
    size_t first_at = 0, second_at = 0, giver_at = 0;  // where the three names begin, in bytes
};

// `count` prompts in the sentence forms of the stories. Within one prompt clean and corrupted have equal length and
// differ in the giver's name only; `correct` and `wrong` have equal length and differ in their first byte, so that for
// a byte model the logits at the last position of the prompt tell them apart. Prompt i depends on (seed, i) only, and
// forms and name orders take turns.
std::vector<IndirectObjectPrompt> indirect_object_prompts(uint64_t seed, int count);

}  // namespace lnfree
