#include "data/story_world.h"

#include <cctype>
#include <stdexcept>
#include <utility>

namespace lnfree {

namespace story {

// ---------------------------------------------------------------------------------------------------------------------
// Vocabulary. Names and things have four letters, places six, names differ in their first letter, and things start
// with a consonant: so two indirect-object prompts of one form are equal in length and in the position of every word,
// and for a byte model the first byte of the answer decides which name it is.

const std::vector<Name>& names() {
    static const std::vector<Name> list = {
        {"Anna", true}, {"Bert", false}, {"Carl", false}, {"Dora", true},  {"Emma", true}, {"Fred", false},
        {"Gwen", true}, {"Hugo", false}, {"Iris", true},  {"John", false}, {"Kate", true}, {"Leon", false},
        {"Mary", true}, {"Nora", true},  {"Owen", false}, {"Paul", false}, {"Rosa", true}, {"Seth", false},
        {"Tina", true}, {"Vera", true},  {"Walt", false}, {"Zeke", false}};
    return list;
}

const std::vector<Where>& places() {
    static const std::vector<Where> list = {{"in", "garden"}, {"at", "market"}, {"at", "school"}, {"in", "cellar"},
                                            {"in", "forest"}, {"in", "church"}, {"at", "harbor"}, {"in", "stable"},
                                            {"at", "bakery"}, {"in", "meadow"}, {"in", "museum"}, {"in", "palace"},
                                            {"in", "castle"}, {"in", "temple"}, {"at", "office"}, {"in", "valley"}};
    return list;
}

const std::vector<Where>& spots() {
    static const std::vector<Where> list = {
        {"in", "box"},       {"in", "chest"},    {"in", "basket"},      {"in", "drawer"},   {"in", "bucket"},
        {"in", "barrel"},    {"in", "cupboard"}, {"on", "table"},       {"on", "shelf"},    {"on", "chair"},
        {"under", "bench"},  {"under", "rug"},   {"under", "cart"},     {"behind", "door"}, {"behind", "stove"},
        {"behind", "clock"}, {"behind", "wall"}, {"behind", "curtain"}, {"in", "bag"},      {"under", "stone"}};
    return list;
}

const std::vector<const char*>& things() {
    static const std::vector<const char*> list = {"lamp", "coin", "book", "ball", "bell", "ring", "rope", "drum",
                                                  "kite", "doll", "vase", "fork", "mask", "hook", "gong", "flag",
                                                  "pipe", "horn", "sock", "comb", "bowl", "card", "cake", "fish",
                                                  "gift", "harp", "kiwi", "lock", "nail", "pear", "plum", "tool"};
    return list;
}

const std::vector<const char*>& adjectives() {
    static const std::vector<const char*> list = {"red",   "blue",  "green", "white", "black", "grey",
                                                  "brown", "old",   "new",   "big",   "small", "shiny",
                                                  "heavy", "light", "round", "dusty", "dirty", "golden"};
    return list;
}

const std::vector<const char*>& animals() {
    static const std::vector<const char*> list = {"fox",    "goose", "horse", "mouse", "rabbit", "crow",  "cow",
                                                  "frog",   "goat",  "owl",   "swan",  "bear",   "deer",  "snake",
                                                  "spider", "wolf",  "hen",   "sheep", "toad",   "donkey"};
    return list;
}

const std::vector<const char*>& topics() {
    static const std::vector<const char*> list = {"the weather", "old times", "their friends", "the war", "the king",
                                                  "money",       "dreams",    "the sea",       "food",    "the moon",
                                                  "summer",      "winter",    "the news",      "ghosts",  "holidays"};
    return list;
}

const std::vector<Liking>& likings() {
    static const std::vector<Liking> list = {
        {"music", "sang a song"},          {"painting", "painted a picture"},  {"birds", "watched the birds"},
        {"stories", "told an old story"},  {"tea", "drank a cup of tea"},      {"cakes", "ate a piece of cake"},
        {"sleep", "slept for an hour"},    {"dancing", "danced in a circle"},  {"cats", "played with a cat"},
        {"numbers", "counted to hundred"}, {"flowers", "picked some flowers"}, {"poems", "wrote a short poem"}};
    return list;
}

const std::vector<Weather>& weathers() {
    static const std::vector<Weather> list = {{"It was raining.", "It was still raining."},
                                              {"The sun was shining.", "The sun was still shining."},
                                              {"Snow was falling.", "Snow was still falling."},
                                              {"A cold wind was blowing.", "The cold wind was still blowing."},
                                              {"The fog was thick.", "The fog was still thick."}};
    return list;
}

const std::vector<IndirectForm>& indirect_forms() {
    static const std::vector<IndirectForm> list = {
        {"When $A and $B went to $Q, $S gave $D to $I.", IndirectForm::going},
        {"Then $A and $B went to $Q. $S gave $D to $I.", IndirectForm::going},
        {"After $A and $B went to $Q, $S handed $D to $I.", IndirectForm::going},
        {"While $A and $B were $P, $S gave $D to $I.", IndirectForm::being},
        {"When $A and $B met $P, $S passed $D to $I.", IndirectForm::meeting},
        {"Later $A and $B met $P, and $S gave $D to $I.", IndirectForm::meeting}};
    return list;
}

namespace {

// The words of one indirect-object sentence.
struct IndirectWords {
    std::string first, second, giver, receiver;  // names; giver and receiver are first and second in either order
    std::string thing;                           // "a drum", "the lamp"
    Where place;
};

}  // namespace

std::string there(Where where) {
    return std::string(where.preposition) + " the " + where.noun;
}

namespace {

std::string indirect_sentence(const IndirectForm& form, const IndirectWords& words) {
    std::string sentence;
    for (const char* c = form.text; *c; c++) {
        if (*c != '$') {
            sentence += *c;
            continue;
        }
        switch (*++c) {
            case 'A':
                sentence += words.first;
                break;
            case 'B':
                sentence += words.second;
                break;
            case 'S':
                sentence += words.giver;
                break;
            case 'I':
                sentence += words.receiver;
                break;
            case 'D':
                sentence += words.thing;
                break;
            case 'P':
                sentence += there(words.place);
                break;
            case 'Q':
                sentence += std::string("the ") + words.place.noun;
                break;
            default:
                throw std::logic_error(std::string("story_world: unknown placeholder $") + *c);
        }
    }
    return sentence;
}

}  // namespace

// ---------------------------------------------------------------------------------------------------------------------
// Random choices

namespace {

// SplitMix64 (Steele, Lea and Flood 2014). std::uniform_int_distribution differs between standard libraries.
class Random {
  public:
    explicit Random(uint64_t seed) : state_(seed) {}

    uint64_t next() {
        uint64_t z = state_ += 0x9E3779B97F4A7C15u;
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
        z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
        return z ^ (z >> 31);
    }

    // A number in [0, count), count > 0.
    size_t below(size_t count) { return (size_t)((next() >> 32) * (uint64_t)count >> 32); }
    bool chance(int percent) { return below(100) < (size_t)percent; }

    template <class T>
    const T& pick(const std::vector<T>& list) {
        return list[below(list.size())];
    }

    // `count` different numbers out of [0, of), in random order.
    std::vector<size_t> sample(size_t count, size_t of) {
        std::vector<size_t> deck(of);
        for (size_t i = 0; i < of; i++) deck[i] = i;
        for (size_t i = 0; i < count; i++) std::swap(deck[i], deck[i + below(of - i)]);
        deck.resize(count);
        return deck;
    }

  private:
    uint64_t state_;
};

// One seed out of two numbers, so that neighbouring seeds and neighbouring stories have nothing in common.
uint64_t mix(uint64_t seed, uint64_t index) {
    const uint64_t start = Random(seed).next();
    return Random(start ^ Random(~index).next()).next();
}

}  // namespace

// ---------------------------------------------------------------------------------------------------------------------
// One story

namespace {

constexpr size_t kNone = SIZE_MAX;

// Where a thing is, or where somebody believes it to be.
struct Location {
    enum Kind { unknown, held, stored } kind = unknown;
    size_t index = kNone;  // the person for held, the spot for stored
    bool operator==(const Location& other) const { return kind == other.kind && index == other.index; }
    bool operator!=(const Location& other) const { return !(*this == other); }
};

struct Person {
    Name name;
    Liking liking;
    size_t place;
    size_t came_from = kNone;  // the place before this one
    bool liking_told = false;
    std::string sight = {};  // "grey goose": the last animal seen, empty for none
    size_t sight_place = kNone;
};

struct Spot {
    Where where;
    size_t place;
};

struct Thing {
    const char* noun;
    const char* adjective;           // may be empty
    Location at;                     // never unknown
    std::vector<Location> believed;  // [person]
};

// What the placeholders of a sentence stand for: indices into the cast, the things, the spots and the places.
struct Slots {
    size_t subject_ = kNone, other_ = kNone, third_ = kNone, thing_ = kNone, spot_ = kNone, spot2_ = kNone,
           place_ = kNone;
    std::vector<size_t> group_;

    Slots& subject(size_t person) { return subject_ = person, *this; }
    Slots& other(size_t person) { return other_ = person, *this; }
    Slots& third(size_t person) { return third_ = person, *this; }
    Slots& thing(size_t thing) { return thing_ = thing, *this; }
    Slots& spot(size_t spot) { return spot_ = spot, *this; }
    Slots& spot2(size_t spot) { return spot2_ = spot, *this; }
    Slots& place(size_t place) { return place_ = place, *this; }
    Slots& group(std::vector<size_t> people) { return group_ = std::move(people), *this; }
};

class StoryWriter {
  public:
    explicit StoryWriter(uint64_t seed) : random_(seed) {}

    std::string write() {
        create_world();
        open();
        const size_t enough = 420 + random_.below(620);
        while (text_.size() < enough) {
            write_scene();
            end_paragraph();
        }
        ask_the_reader();
        end_paragraph();
        return text_;
    }

  private:
    // ---- The world

    void create_world() {
        const size_t cast_size = 2 + random_.below(3);
        const size_t place_count = 2 + random_.below(2);
        for (size_t i : random_.sample(place_count, places().size())) places_.push_back(places()[i]);
        const std::vector<size_t> likes = random_.sample(cast_size, likings().size());
        for (size_t i : random_.sample(cast_size, names().size())) {
            const size_t place = random_.below(place_count);
            people_.push_back({names()[i], likings()[likes[people_.size()]], place, kNone, false, "", kNone});
        }
        for (size_t i : random_.sample(place_count + 2, spots().size())) {
            const size_t place = spots_.size() < place_count ? spots_.size() : random_.below(place_count);
            spots_.push_back({spots()[i], place});
        }
        unused_things_ = random_.sample(6, things().size());
        weather_ = random_.pick(weathers());
    }

    // A thing that the story has not had yet. An adjective tells the reader more than the prompts' plain nouns do.
    size_t create_thing(Location at, bool with_adjective) {
        const char* noun = story::things()[unused_things_.back()];
        unused_things_.pop_back();
        const char* adjective = with_adjective ? random_.pick(adjectives()) : "";
        things_.push_back({noun, adjective, at, std::vector<Location>(people_.size())});
        witness(things_.size() - 1);
        return things_.size() - 1;
    }

    size_t place_of(Location at) const {
        return at.kind == Location::held ? people_[at.index].place : spots_[at.index].place;
    }

    std::vector<size_t> people_in(size_t place, size_t except = kNone) const {
        std::vector<size_t> found;
        for (size_t p = 0; p < people_.size(); p++) {
            if (p != except && people_[p].place == place) found.push_back(p);
        }
        return found;
    }

    std::vector<size_t> spots_in(size_t place, size_t except = kNone) const {
        std::vector<size_t> found;
        for (size_t s = 0; s < spots_.size(); s++) {
            if (s != except && spots_[s].place == place) found.push_back(s);
        }
        return found;
    }

    std::vector<size_t> things_at(Location at) const {
        std::vector<size_t> found;
        for (size_t t = 0; t < things_.size(); t++) {
            if (things_[t].at == at) found.push_back(t);
        }
        return found;
    }

    void move_person(size_t person, size_t place) {
        if (people_[person].place == place) return;
        people_[person].came_from = people_[person].place;
        people_[person].place = place;
    }

    // Everybody in the same place sees where the thing is now.
    void witness(size_t thing) {
        const Location at = things_[thing].at;
        for (size_t p : people_in(place_of(at))) things_[thing].believed[p] = at;
    }

    void move_thing(size_t thing, Location to) {
        const size_t from_place = place_of(things_[thing].at);
        things_[thing].at = to;
        for (size_t p : people_in(from_place)) things_[thing].believed[p] = to;
        witness(thing);
    }

    // ---- Sentences

    // Appends one sentence. Placeholders:
    //   $S the subject, by name or, where nobody else can be meant, by pronoun    $N the subject by name
    //   $s he/she, $h him/her for the subject        $O the other person, $o he/she, $m him/her for the other person
    //   $H a third person by name      $G a group: "Anna, Bert and Kate", $W was/were for it
    //   $T "the lamp", now and then "the red lamp"   $A "a red lamp"
    //   $L "in the box", $F "from the box", $M the second spot, $K "box"      $P "in the garden", $Q "the garden"
    // All random choices happen here, from left to right: the order in which C++ evaluates arguments is not fixed.
    void say(const std::string& form, const Slots& slots = {}) {
        std::string sentence;
        for (size_t i = 0; i < form.size(); i++) {
            if (form[i] == '$') {
                sentence += placeholder(form[++i], slots);
            } else {
                sentence += form[i];
            }
        }
        append(sentence);
        const bool ambiguous = same_pronoun(slots.subject_, slots.other_) || same_pronoun(slots.subject_, slots.third_);
        focus_ = ambiguous ? kNone : slots.subject_;
    }

    bool same_pronoun(size_t a, size_t b) const {
        return a != kNone && b != kNone && people_[a].name.she == people_[b].name.she;
    }

    void append(std::string sentence) {
        const size_t first_letter = sentence[0] == '"' ? 1 : 0;
        sentence[first_letter] = (char)std::toupper((unsigned char)sentence[first_letter]);
        if (!paragraph_.empty()) paragraph_ += ' ';
        paragraph_ += sentence;
    }

    // A sentence of action: like say, now and then with a connective.
    void act(const std::string& form, const Slots& slots) {
        static const std::vector<const char*> connectives = {"Then ",        "Later ",    "Soon ",
                                                             "After that, ", "At noon, ", "A little later, ",
                                                             "At last ",     "Suddenly ", "Now "};
        const std::string connective = random_.chance(33) ? random_.pick(connectives) : "";
        say(connective + form, slots);
    }

    std::string placeholder(char letter, const Slots& slots) {
        switch (letter) {
            case 'S':
                if (focus_ == slots.subject_ && random_.chance(70)) return pronoun(slots.subject_);
                return people_[slots.subject_].name.text;
            case 'N':
                return people_[slots.subject_].name.text;
            case 's':
                return pronoun(slots.subject_);
            case 'h':
                return people_[slots.subject_].name.she ? "her" : "him";
            case 'O':
                return people_[slots.other_].name.text;
            case 'o':
                return pronoun(slots.other_);
            case 'm':
                return people_[slots.other_].name.she ? "her" : "him";
            case 'H':
                return people_[slots.third_].name.text;
            case 'G':
                return enumerate(slots.group_);
            case 'W':
                return slots.group_.size() == 1 ? "was" : "were";
            case 'T':
                return "the " + described(slots.thing_, random_.chance(20));
            case 'A':
                return with_article(described(slots.thing_, true));
            case 'L':
                return there(spots_[slots.spot_].where);
            case 'F':
                return from(spots_[slots.spot_].where);
            case 'M':
                return there(spots_[slots.spot2_].where);
            case 'K':
                return spots_[slots.spot_].where.noun;
            case 'P':
                return there(places_[slots.place_]);
            case 'Q':
                return std::string("the ") + places_[slots.place_].noun;
            default:
                throw std::logic_error(std::string("story_world: unknown placeholder $") + letter);
        }
    }

    const char* pronoun(size_t person) const { return people_[person].name.she ? "she" : "he"; }

    std::string enumerate(const std::vector<size_t>& group) const {
        std::string text = people_[group[0]].name.text;
        for (size_t i = 1; i < group.size(); i++) {
            text += i + 1 < group.size() ? ", " : " and ";
            text += people_[group[i]].name.text;
        }
        return text;
    }

    std::string described(size_t thing, bool in_full) const {
        const Thing& it = things_[thing];
        return in_full && it.adjective[0] ? std::string(it.adjective) + " " + it.noun : it.noun;
    }

    static std::string with_article(const std::string& noun) {
        const bool vowel = std::string("aeiou").find(noun[0]) != std::string::npos;
        return (vowel ? "an " : "a ") + noun;
    }

    // "from the box", "from the table", but "from under the bed".
    static std::string from(Where where) {
        const bool keeps = where.preposition[0] == 'u' || where.preposition[0] == 'b';
        return std::string("from ") + (keeps ? std::string(where.preposition) + " " : "") + "the " + where.noun;
    }

    void end_paragraph() {
        text_ += paragraph_ + "\n";
        paragraph_.clear();
        focus_ = kNone;
    }

    // ---- The opening: who is where, what lies where

    void open() {
        if (random_.chance(40)) {  // so that a bare indirect-object prompt looks like the beginning of a story
            exchange();
            end_paragraph();
            for (Person& person : people_) person.came_from = kNone;  // the reader was not told
        }
        say_who_is_where();
        if (random_.chance(60)) {
            say(weather_.first);
            weather_told_ = true;
        }
        for (size_t s = 0; s < spots_.size(); s++) {
            if (random_.chance(60)) say_what_is_in(s);
        }
        for (size_t p = 0; p < people_.size(); p++) {
            if (unused_things_.size() > 2 && random_.chance(35)) {
                const size_t thing = create_thing({Location::held, p}, true);
                say("$S had $A.", Slots().subject(p).thing(thing));
            }
            if (random_.chance(50)) say_liking(p);
        }
        end_paragraph();
    }

    void say_who_is_where() {
        static const std::vector<const char*> beginnings = {"", "One morning ", "One day ", "One evening ",
                                                            "Early in the morning "};
        bool first = true;
        for (size_t place = 0; place < places_.size(); place++) {
            const std::vector<size_t> group = people_in(place);
            if (group.empty()) continue;
            const std::string beginning = first ? random_.pick(beginnings) : "";
            say(beginning + "$G $W $P.", Slots().place(place).group(group));
            first = false;
        }
    }

    void say_what_is_in(size_t spot) {
        Slots slots = Slots().spot(spot).place(spots_[spot].place);
        if (unused_things_.size() <= 2 || random_.chance(25)) return say("There was a $K $P.", slots);
        slots.thing(create_thing({Location::stored, spot}, true));
        if (random_.chance(50)) {
            say("There was a $K $P, and $A was $L.", slots);
        } else {
            say("$A was $L $P.", slots);
        }
    }

    void say_liking(size_t person) {
        static const std::vector<const char*> forms = {"$S liked ", "$S loved ", "$S was fond of "};
        say(std::string(random_.pick(forms)) + people_[person].liking.noun + ".", Slots().subject(person));
        people_[person].liking_told = true;
    }

    // ---- Scenes: a few events that belong together

    void write_scene() {
        const size_t kind = random_.below(10);
        if (kind < 4) {
            exchange();
            for (size_t i = random_.below(3); i > 0; i--) one_event();
        } else if (kind < 6) {
            search_for_something();
        } else if (kind < 7) {
            deceive();
        } else {
            for (size_t i = 2 + random_.below(3); i > 0; i--) one_event();
        }
        if (random_.chance(45)) exchange();
        if (paragraph_.empty()) one_event();
    }

    // Somebody does something: what is drawn first of what can happen now. Walking always can.
    void one_event() {
        for (int attempt = 0; attempt < 4; attempt++) {
            const size_t person = random_.below(people_.size());
            if (try_event(random_.below(100), person)) return;
        }
        walk(random_.below(people_.size()));
    }

    bool try_event(size_t kind, size_t person) {
        if (kind < 14) return put_down(person);
        if (kind < 28) return take_up(person);
        if (kind < 40) return give(person);
        if (kind < 49) return tell(person);
        if (kind < 63) return chat(person);
        if (kind < 71) return remark(person);
        if (kind < 78) return follow_habit(person);
        if (kind < 90) return see_something(person);
        return walk(person);
    }

    // ---- Events. Each returns false, having said nothing, when it cannot happen.

    bool walk(size_t person) {
        const size_t place = another_place(people_[person].place);
        const std::vector<size_t> left_behind = people_in(people_[person].place, person);
        if (!left_behind.empty() && random_.chance(30)) {
            const size_t friend_ = random_.pick(left_behind);
            move_person(person, place);
            move_person(friend_, place);
            if (same_pronoun(person, friend_)) {
                act("$N and $O went to $Q together.", Slots().subject(person).other(friend_).place(place));
            } else {
                act("$S went to $Q, and $O went with $h.", Slots().subject(person).other(friend_).place(place));
            }
            return true;
        }
        static const std::vector<const char*> forms = {"$S went to $Q.", "$S walked to $Q.", "$S ran to $Q.",
                                                       "$S hurried to $Q."};
        const std::vector<size_t> waiting = people_in(place);
        move_person(person, place);
        act(random_.pick(forms), Slots().subject(person).place(place));
        if (random_.chance(50)) return true;
        if (waiting.empty()) {
            say("Nobody else was there.");
        } else if (random_.chance(50)) {
            say("There $S met $O.", Slots().subject(person).other(random_.pick(waiting)));
        } else {
            say("$O was there too.", Slots().other(random_.pick(waiting)));
        }
        return true;
    }

    size_t another_place(size_t than) {
        const size_t place = random_.below(places_.size() - 1);
        return place < than ? place : place + 1;
    }

    bool put_down(size_t person) {
        const std::vector<size_t> in_hands = things_at({Location::held, person});
        const std::vector<size_t> near = spots_in(people_[person].place);
        if (in_hands.empty() || near.empty()) return false;
        put_down(person, random_.pick(in_hands), near);
        return true;
    }

    void put_down(size_t person, size_t thing, const std::vector<size_t>& near) {
        static const std::vector<const char*> forms = {"$S put $T $L.", "$S hid $T $L.", "$S left $T $L."};
        const size_t spot = random_.pick(near);
        move_thing(thing, {Location::stored, spot});
        act(random_.pick(forms), Slots().subject(person).thing(thing).spot(spot));
        if (random_.chance(30)) say_who_saw(person);
    }

    bool take_up(size_t person) {
        std::vector<size_t> near;
        for (size_t spot : spots_in(people_[person].place)) {
            for (size_t thing : things_at({Location::stored, spot})) near.push_back(thing);
        }
        if (near.empty()) return false;
        const size_t thing = random_.pick(near);
        const size_t spot = things_[thing].at.index;
        const std::vector<size_t> other_spots = spots_in(people_[person].place, spot);
        if (!other_spots.empty() && random_.chance(40)) {
            put_elsewhere(person, thing);
            return true;
        }
        static const std::vector<const char*> forms = {"$S took $T $F.", "$S found $T $L and took it."};
        move_thing(thing, {Location::held, person});
        act(random_.pick(forms), Slots().subject(person).thing(thing).spot(spot));
        return true;
    }

    // Takes the thing from its spot to another spot of the same place, of which there must be one.
    void put_elsewhere(size_t person, size_t thing) {
        const size_t spot = things_[thing].at.index;
        const size_t spot2 = random_.pick(spots_in(people_[person].place, spot));
        move_thing(thing, {Location::stored, spot2});
        act("$S took $T $F and put it $M.", Slots().subject(person).thing(thing).spot(spot).spot2(spot2));
        if (random_.chance(30)) say_who_saw(person);
    }

    // One person puts something away and leaves, another one moves it, the first comes back and looks in the wrong spot.
    // It takes somebody with full hands, company and two spots: without them, something else happens.
    void deceive() {
        for (size_t person = 0; person < people_.size(); person++) {
            const std::vector<size_t> in_hands = things_at({Location::held, person});
            const std::vector<size_t> present = people_in(people_[person].place, person);
            const std::vector<size_t> near = spots_in(people_[person].place);
            if (in_hands.empty() || present.empty() || near.size() < 2) continue;
            const size_t thing = random_.pick(in_hands);
            put_down(person, thing, near);
            move_person(person, another_place(people_[person].place));
            say("Then $N went to $Q.", Slots().subject(person).place(people_[person].place));
            put_elsewhere(random_.pick(present), thing);
            if (random_.chance(50)) {
                recall_error(person);
            } else {
                search_for(thing, person);
            }
            return;
        }
        one_event();
    }

    void say_who_saw(size_t person) {
        const std::vector<size_t> present = people_in(people_[person].place, person);
        if (present.empty()) return say("Nobody saw this.");
        if (present.size() == 1 && people_.size() > 2) return say("Only $O saw this.", Slots().other(present[0]));
        for (size_t p = 0; p < people_.size(); p++) {
            if (people_[p].place != people_[person].place) return say("$O did not see this.", Slots().other(p));
        }
    }

    bool give(size_t person) {
        const std::vector<size_t> in_hands = things_at({Location::held, person});
        const std::vector<size_t> present = people_in(people_[person].place, person);
        if (in_hands.empty() || present.empty()) return false;
        const size_t thing = random_.pick(in_hands);
        const size_t receiver = random_.pick(present);
        const bool pronouns_clear = people_[person].name.she != people_[receiver].name.she;
        hand_over(thing, person, receiver);
        if (pronouns_clear && random_.chance(40)) {
            act("$S asked $O for $T, and $o gave it to $h.", Slots().subject(receiver).other(person).thing(thing));
            return true;
        }
        static const std::vector<const char*> forms = {"$S gave $T to $O.", "$S handed $T to $O.", "$S gave $O $T."};
        act(random_.pick(forms), Slots().subject(person).other(receiver).thing(thing));
        say_thanks(receiver, person);
        return true;
    }

    void hand_over(size_t thing, size_t giver, size_t receiver) {
        move_thing(thing, {Location::held, receiver});
        gifts_.push_back({thing, giver, receiver});
    }

    void say_thanks(size_t receiver, size_t giver) {
        if (random_.chance(70)) return;
        static const std::vector<const char*> forms = {"$N thanked $O.", "\"Thank you, $O,\" said $N."};
        say(random_.pick(forms), Slots().subject(receiver).other(giver));
    }

    // Two people come together and one gives something to the other: the indirect-object sentence.
    void exchange() {
        const std::vector<size_t> pair = random_.sample(2, people_.size());
        const size_t giver = pair[random_.below(2)];
        const size_t receiver = giver == pair[0] ? pair[1] : pair[0];
        const std::vector<size_t> in_hands = things_at({Location::held, giver});
        const bool something_new = !unused_things_.empty() && (in_hands.empty() || random_.chance(60));
        if (!something_new && in_hands.empty()) return;

        const IndirectForm form = pick_indirect_form(pair[0], pair[1]);
        const size_t place =
            form.setting == IndirectForm::going ? unvisited_place(pair[0], pair[1]) : people_[pair[0]].place;
        move_person(giver, place);
        move_person(receiver, place);
        const size_t thing = something_new ? create_thing({Location::held, giver}, false) : random_.pick(in_hands);
        hand_over(thing, giver, receiver);

        const std::string named = (something_new ? "a " : "the ") + std::string(things_[thing].noun);
        append(indirect_sentence(
            form, {name_of(pair[0]), name_of(pair[1]), name_of(giver), name_of(receiver), named, places_[place]}));
        focus_ = kNone;
        say_thanks(receiver, giver);
        if (random_.chance(25)) say(std::string("They talked about ") + random_.pick(topics()) + ".");
    }

    // "met" is for people who were apart, "were" for people who are together, "went" needs a place that is new to both.
    const IndirectForm& pick_indirect_form(size_t a, size_t b) {
        const bool together = people_[a].place == people_[b].place;
        const bool somewhere_else = together || places_.size() > 2;
        for (;;) {
            const IndirectForm& form = random_.pick(indirect_forms());
            if (form.setting == IndirectForm::going && somewhere_else) return form;
            if (form.setting == IndirectForm::being && together) return form;
            if (form.setting == IndirectForm::meeting && !together) return form;
        }
    }

    size_t unvisited_place(size_t a, size_t b) {
        for (;;) {
            const size_t place = random_.below(places_.size());
            if (place != people_[a].place && place != people_[b].place) return place;
        }
    }

    // ---- What people know

    // Says where the thing is believed to be: `stored` for a place, `mine` when the speaker has it, `theirs` otherwise.
    struct Report {
        const char *stored, *mine, *theirs;
    };

    void report(const Report& forms, size_t thing, Location believed, size_t speaker, size_t listener) {
        Slots slots = Slots().subject(speaker).other(listener).thing(thing);
        if (believed.kind == Location::stored) {
            const size_t place = spots_[believed.index].place;
            return say(forms.stored, slots.spot(believed.index).place(place));
        }
        if (believed.index == speaker) return say(forms.mine, slots);
        say(forms.theirs, slots.third(believed.index));
    }

    bool tell(size_t person) {
        static const std::vector<Report> ways = {
            {"$S told $O that $T was $L $P.", "\"I have $T,\" $S told $O.", "$S told $O that $H had $T."},
            {"\"$T is $L $P,\" $S said to $O.", "\"I have $T,\" $S said to $O.", "\"$H has $T,\" $N said to $O."}};
        for (size_t listener : people_in(people_[person].place, person)) {
            for (size_t t = 0; t < things_.size(); t++) {
                const Location known = things_[t].believed[person];
                const Location hers = {Location::held, listener};
                if (known.kind == Location::unknown || known == things_[t].believed[listener]) continue;
                if (known == hers || things_[t].at == hers) continue;
                report(random_.pick(ways), t, known, person, listener);
                things_[t].believed[listener] = known;
                return true;
            }
        }
        return false;
    }

    void ask(size_t person, size_t friend_, size_t thing) {
        static const Report answer = {"\"It is $L $P,\" said $N.", "\"I have it,\" said $N.",
                                      "\"$H has it,\" said $N."};
        say("\"Where is $T?\" $S asked $O.", Slots().subject(person).other(friend_).thing(thing));
        const Location known = things_[thing].believed[friend_];
        if (known.kind == Location::unknown || known == Location{Location::held, person}) {
            say("\"I do not know,\" said $N.", Slots().subject(friend_));
        } else {
            report(answer, thing, known, friend_, person);
            things_[thing].believed[person] = known;
        }
        focus_ = kNone;
    }

    // Small talk. The answers are as true as everything else.
    bool chat(size_t person) {
        const std::vector<size_t> present = people_in(people_[person].place, person);
        if (present.empty()) return false;
        const size_t friend_ = random_.pick(present);
        const Person& other = people_[friend_];
        const Slots slots = Slots().subject(person).other(friend_);
        const size_t kind = random_.below(4);
        if (kind == 0) {
            say("\"What do you like?\" $S asked $O.", slots);
            say(std::string("\"I like ") + other.liking.noun + ",\" said $O.", Slots().other(friend_));
            people_[friend_].liking_told = true;
        } else if (kind == 1) {
            if (other.came_from == kNone) return false;
            say("\"Where have you been?\" $S asked $O.", slots);
            say("\"I was $P,\" said $O.", Slots().other(friend_).place(other.came_from));
        } else if (kind == 2) {
            const std::vector<size_t> in_hands = things_at({Location::held, friend_});
            say("\"What do you have there?\" $S asked $O.", slots);
            if (in_hands.empty()) {
                say("\"I have nothing,\" said $O.", Slots().other(friend_));
            } else {
                say("\"I have $T,\" said $O.", Slots().other(friend_).thing(random_.pick(in_hands)));
            }
        } else {
            if (other.sight.empty()) return false;
            say("\"What did you see?\" $S asked $O.", slots);
            say("\"I saw a " + other.sight + " $P,\" said $O.", Slots().other(friend_).place(other.sight_place));
        }
        return true;
    }

    // Somebody wants a thing, asks for it if need be, goes where it is believed to be and finds it or does not.
    void search_for_something() {
        const size_t person = random_.below(people_.size());
        std::vector<size_t> wanted;
        for (size_t t = 0; t < things_.size(); t++) {
            if (things_[t].at != Location{Location::held, person}) wanted.push_back(t);
        }
        if (!wanted.empty()) search_for(random_.pick(wanted), person);
    }

    void search_for(size_t thing, size_t person) {
        static const std::vector<const char*> forms = {"$S wanted $T.", "$S was looking for $T.", "$S needed $T."};
        act(random_.pick(forms), Slots().subject(person).thing(thing));
        const std::vector<size_t> present = people_in(people_[person].place, person);
        if (things_[thing].believed[person].kind == Location::unknown && !present.empty()) {
            ask(person, random_.pick(present), thing);
        }
        const Location believed = things_[thing].believed[person];
        if (believed.kind == Location::unknown) {
            say("But $S did not know where to look.", Slots().subject(person));
        } else if (believed.kind == Location::stored) {
            look_for(thing, person, believed.index);
        } else {
            ask_holder_for(thing, person, believed.index);
        }
    }

    void look_for(size_t thing, size_t person, size_t spot) {
        const size_t place = spots_[spot].place;
        if (people_[person].place != place) {
            move_person(person, place);
            say("So $S went to $Q.", Slots().subject(person).place(place));
        }
        say("$S looked $L.", Slots().subject(person).spot(spot));
        const Location here = {Location::stored, spot};
        if (things_[thing].at == here) {
            move_thing(thing, {Location::held, person});
            return say("$T was there, and $s took it.", Slots().subject(person).thing(thing));
        }
        for (size_t p : people_in(place)) {
            if (things_[thing].believed[p] == here) things_[thing].believed[p] = {};
        }
        say("But $T was not there.", Slots().thing(thing));
    }

    void ask_holder_for(size_t thing, size_t person, size_t holder) {
        const size_t place = people_[holder].place;
        if (people_[person].place != place) {
            move_person(person, place);
            say("So $S went to $Q and found $O there.", Slots().subject(person).other(holder).place(place));
        }
        if (things_[thing].at == Location{Location::held, holder}) {
            hand_over(thing, holder, person);
            return say("$N gave $T to $O.", Slots().subject(holder).other(person).thing(thing));
        }
        for (size_t p : people_in(place)) {
            if (things_[thing].believed[p] == Location{Location::held, holder}) things_[thing].believed[p] = {};
        }
        say("But $O did not have $T any more.", Slots().other(holder).thing(thing));
    }

    // ---- Remarks: what was said before is still so

    bool remark(size_t person) {
        const size_t kind = random_.below(4);
        if (kind == 0 && weather_told_) {
            say(weather_.again);
            return true;
        }
        if (kind == 1) {
            const std::vector<size_t> in_hands = things_at({Location::held, person});
            if (in_hands.empty()) return false;
            say("$S still had $T.", Slots().subject(person).thing(random_.pick(in_hands)));
            return true;
        }
        if (kind == 2) {
            const std::vector<size_t> group = people_in(people_[person].place);
            say("$G $W $P now.", Slots().place(people_[person].place).group(group));
            return true;
        }
        return recall_error(person);
    }

    std::vector<size_t> things_misplaced_by(size_t person) const {
        std::vector<size_t> found;
        for (size_t t = 0; t < things_.size(); t++) {
            const Location believed = things_[t].believed[person];
            if (believed.kind == Location::stored && believed != things_[t].at) found.push_back(t);
        }
        return found;
    }

    bool recall_error(size_t person) {
        const std::vector<size_t> misplaced = things_misplaced_by(person);
        if (misplaced.empty()) return false;
        const size_t thing = random_.pick(misplaced);
        const size_t spot = things_[thing].believed[person].index;
        say("$S still thought that $T was $L $P.",
            Slots().subject(person).thing(thing).spot(spot).place(spots_[spot].place));
        return true;
    }

    // Animals come and go. What somebody saw last can be told and asked later.
    bool see_something(size_t person) {
        Person& watcher = people_[person];
        if (!watcher.sight.empty() && random_.chance(50)) {
            say("$S was still thinking of the " + watcher.sight + ".", Slots().subject(person));
            return true;
        }
        do {
            watcher.sight = random_.pick(adjectives());
        } while (std::string("aeiou").find(watcher.sight[0]) != std::string::npos);
        watcher.sight += std::string(" ") + random_.pick(animals());
        watcher.sight_place = watcher.place;
        if (random_.chance(50)) {
            act("$S saw a " + watcher.sight + ".", Slots().subject(person));
        } else {
            say("There was a " + watcher.sight + " $P, and $N saw it.", Slots().subject(person).place(watcher.place));
        }
        return true;
    }

    bool follow_habit(size_t person) {
        const Liking& liking = people_[person].liking;
        if (!people_[person].liking_told) {
            say_liking(person);
        } else if (random_.chance(40)) {
            say(std::string("$N, who liked ") + liking.noun + ", " + liking.habit + ".", Slots().subject(person));
        } else {
            act(std::string("$S ") + liking.habit + ".", Slots().subject(person));
        }
        return true;
    }

    // ---- The end: questions about the world

    struct Question {
        enum Kind { where_thing, who_holds, where_person, liking, sight, who_gave, knows, believes } kind;
        size_t thing = kNone, person = kNone, giver = kNone;
    };

    void ask_the_reader() {
        static const std::vector<const char*> beginnings = {"Then the day was over.", "In the end everybody was tired.",
                                                            "So the day came to an end."};
        if (random_.chance(50)) say(random_.pick(beginnings));
        const std::vector<Question> possible = possible_questions();
        const size_t count = 2 + random_.below(3);
        for (size_t i : random_.sample(count < possible.size() ? count : possible.size(), possible.size())) {
            pose(possible[i]);
        }
    }

    std::vector<Question> possible_questions() const {
        std::vector<Question> list;
        for (size_t t = 0; t < things_.size(); t++) {
            list.push_back({Question::where_thing, t});
            if (things_[t].at.kind == Location::held) list.push_back({Question::who_holds, t, things_[t].at.index});
        }
        for (size_t p = 0; p < people_.size(); p++) {
            list.push_back({Question::where_person, kNone, p});
            if (people_[p].liking_told) list.push_back({Question::liking, kNone, p});
            if (!people_[p].sight.empty()) list.push_back({Question::sight, kNone, p});
            for (size_t t : things_misplaced_by(p)) list.push_back({Question::believes, t, p});
        }
        for (const Gift& gift : gifts_) {
            size_t same = 0;
            for (const Gift& other : gifts_) same += other.thing == gift.thing && other.receiver == gift.receiver;
            if (same == 1) list.push_back({Question::who_gave, gift.thing, gift.receiver, gift.giver});
        }
        if (!things_.empty()) {
            const size_t last = things_.size() - 1;
            for (size_t p = 0; p < people_.size(); p++) list.push_back({Question::knows, last, p});
        }
        return list;
    }

    void pose(const Question& question) {
        const Slots slots = Slots().subject(question.person).thing(question.thing).other(question.giver);
        focus_ = kNone;
        switch (question.kind) {
            case Question::where_thing:
                say("Where was $T?", slots);
                return say_location("It was $L $P.", question.thing, things_[question.thing].at);
            case Question::who_holds:
                say("Who had $T?", slots);
                return say("$N had it.", slots);
            case Question::where_person:
                say("Where was $N?", slots);
                return say("$s was $P.", Slots().subject(question.person).place(people_[question.person].place));
            case Question::liking:
                say("What did $N like?", slots);
                return say(std::string("$s liked ") + people_[question.person].liking.noun + ".", slots);
            case Question::sight:
                say("What did $N see?", slots);
                return say("$s saw a " + people_[question.person].sight + ".", slots);
            case Question::who_gave:
                say("Who gave $T to $N?", slots);
                return say("It was $O.", slots);
            case Question::knows: {
                const bool yes = things_[question.thing].believed[question.person] == things_[question.thing].at;
                say("Did $N know where $T was?", slots);
                return say(yes ? "Yes, $s did." : "No, $s did not.", slots);
            }
            case Question::believes:
                say("Where did $N think that $T was?", slots);
                return say_location("It was $L $P, $s thought.", question.thing,
                                    things_[question.thing].believed[question.person], question.person);
        }
    }

    void say_location(const char* stored_form, size_t thing, Location at, size_t thinker = kNone) {
        if (at.kind == Location::held) return say("$N had it.", Slots().subject(at.index).thing(thing));
        say(stored_form, Slots().subject(thinker).spot(at.index).place(spots_[at.index].place));
    }

    struct Gift {
        size_t thing, giver, receiver;
    };

    const char* name_of(size_t person) const { return people_[person].name.text; }

    Random random_;
    std::vector<Where> places_;
    std::vector<Person> people_;
    std::vector<Spot> spots_;
    std::vector<Thing> things_;
    std::vector<size_t> unused_things_;  // indices into things()
    std::vector<Gift> gifts_;            // every hand-over, in order
    Weather weather_ = {};
    bool weather_told_ = false;
    size_t focus_ = kNone;  // the subject of the sentence before, if a pronoun can only mean this person
    std::string paragraph_;
    std::string text_;
};

}  // namespace

}  // namespace story

// ---------------------------------------------------------------------------------------------------------------------
// What others use

std::string StoryWorld::next_story() {
    return story::StoryWriter(story::mix(seed_, next_++)).write();
}

std::vector<IndirectObjectPrompt> indirect_object_prompts(uint64_t seed, int count) {
    std::vector<IndirectObjectPrompt> prompts;
    for (int i = 0; i < count; i++) {
        story::Random random(story::mix(seed ^ 0x696F6970726F6D70u, (uint64_t)i));
        const size_t form = (size_t)i / 2 % story::indirect_forms().size();
        const std::vector<size_t> pair = random.sample(2, story::names().size());
        story::IndirectWords words;
        words.first = story::names()[pair[0]].text;
        words.second = story::names()[pair[1]].text;
        words.thing = std::string("a ") + random.pick(story::things());
        words.place = random.pick(story::places());
        words.giver = i % 2 ? words.first : words.second;
        words.receiver = i % 2 ? words.second : words.first;
        const std::string clean = story::indirect_sentence(story::indirect_forms()[form], words);
        std::swap(words.giver, words.receiver);
        const std::string corrupted = story::indirect_sentence(story::indirect_forms()[form], words);

        const size_t end = clean.size() - words.giver.size() - 1;  // without the answer and the full stop
        IndirectObjectPrompt prompt;
        prompt.clean = clean.substr(0, end);
        prompt.corrupted = corrupted.substr(0, end);
        prompt.correct = words.giver;  // swapped above
        prompt.wrong = words.receiver;
        prompt.form = form;
        prompt.giver_first = i % 2;
        prompt.first_at = clean.find(words.first);
        prompt.second_at = clean.find(words.second);
        prompt.giver_at = clean.find(prompt.wrong, prompt.second_at + (i % 2 ? 0 : 1));
        prompts.push_back(prompt);
    }
    return prompts;
}

}  // namespace lnfree
