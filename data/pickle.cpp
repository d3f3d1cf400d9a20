#include "data/pickle.h"

#include <algorithm>
#include <cstring>
#include <map>
#include <unordered_map>

#include "data/files.h"

namespace lnfree {

namespace {

using Kind = PickleValue::Kind;

constexpr uint64_t longest_pickle = 16 << 20;  // bytes; GPT-2 XL's with its optimiser has less than one
constexpr uint64_t most_values = 1'000'000;
constexpr uint64_t most_items = 4'000'000;  // in all lists and dictionaries together
constexpr uint64_t most_dimensions = 64;

// The opcodes that are known (pickletools.py of Python describes all of them).
enum Opcode : unsigned char {
    mark = '(',
    stop = '.',
    pop = '0',
    pop_mark = '1',
    binint = 'J',
    binint1 = 'K',
    binint2 = 'M',
    none = 'N',
    binpersid = 'Q',
    reduce = 'R',
    binstring = 'T',
    short_binstring = 'U',
    binunicode = 'X',
    append = 'a',
    build = 'b',
    global = 'c',
    appends = 'e',
    binget = 'h',
    long_binget = 'j',
    empty_list = ']',
    binput = 'q',
    long_binput = 'r',
    setitem = 's',
    tuple = 't',
    setitems = 'u',
    empty_dict = '}',
    empty_tuple = ')',
    binfloat = 'G',
    binbytes = 'B',
    short_binbytes = 'C',
    proto = 0x80,
    tuple1 = 0x85,
    tuple2 = 0x86,
    tuple3 = 0x87,
    newtrue = 0x88,
    newfalse = 0x89,
    long1 = 0x8a,
    short_binunicode = 0x8c,
    stack_global = 0x93,
    memoize = 0x94,
    frame = 0x95,
};

// What a known name is to this reader.
enum class Role { ordered_dict, rebuild_tensor, rebuild_parameter, size, device, storage_type, element_type };

struct KnownName {
    Role role;
    DType dtype = DType::F32;  // of a storage_type
};

const std::map<std::string, KnownName>& known_names() {
    static const std::map<std::string, KnownName> names = {
        {"collections.OrderedDict", {Role::ordered_dict}},
        {"torch._utils._rebuild_tensor_v2", {Role::rebuild_tensor}},
        {"torch._utils._rebuild_parameter", {Role::rebuild_parameter}},
        {"torch.Size", {Role::size}},
        {"torch.device", {Role::device}},
        {"torch.DoubleStorage", {Role::storage_type, DType::F64}},
        {"torch.FloatStorage", {Role::storage_type, DType::F32}},
        {"torch.HalfStorage", {Role::storage_type, DType::F16}},
        {"torch.BFloat16Storage", {Role::storage_type, DType::BF16}},
        {"torch.LongStorage", {Role::storage_type, DType::I64}},
        {"torch.IntStorage", {Role::storage_type, DType::I32}},
        {"torch.ShortStorage", {Role::storage_type, DType::I16}},
        {"torch.CharStorage", {Role::storage_type, DType::I8}},
        {"torch.ByteStorage", {Role::storage_type, DType::U8}},
        {"torch.BoolStorage", {Role::storage_type, DType::BOOL}},
        {"torch.storage.UntypedStorage", {Role::storage_type, DType::U8}},
        {"torch.float64", {Role::element_type}},
        {"torch.float32", {Role::element_type}},
        {"torch.float16", {Role::element_type}},
        {"torch.bfloat16", {Role::element_type}},
    };
    return names;
}

}  // namespace

// Runs a pickle's opcodes. The stack, the memo and all values hold pointers to values that the Pickle owns.
class PickleMachine {
  public:
    PickleMachine(Pickle& pickle, const unsigned char* bytes, uint64_t size, const Pickle::Storages& storages,
                  const std::string& file)
        : pickle_(pickle),
          bytes_(bytes),
          size_(size),
          storages_(storages),
          file_(file),
          path_(std::make_shared<const std::string>(file)) {}

    const PickleValue* run() {
        for (;;) {
            const unsigned char opcode = *take(1);
            if (opcode == stop) return pop_value();
            if (!structure(opcode) && !plain_value(opcode) && !memory(opcode) && !object(opcode))
                refuse("the opcode " + std::to_string(opcode));
        }
    }

  private:
    [[noreturn]] void damaged(const std::string& what) const {
        throw BadInput(file_ + ": its pickle is damaged at byte " + std::to_string(at_) + ": " + what +
                       "; fetch the file again");
    }

    [[noreturn]] void refuse(const std::string& what) const {
        throw BadInput(file_ + ": its pickle uses " + what +
                       ", which a dictionary of tensors does not need; nothing in it was run. If you trust the file, "
                       "load it with torch and save its tensors alone: torch.save(model.state_dict(), ...)");
    }

    [[noreturn]] void too_large(uint64_t most, const std::string& what) const {
        throw BadInput(file_ + ": its pickle holds more than " + std::to_string(most) + " " + what +
                       "; it is no model's state dict");
    }

    // -- bytes

    const unsigned char* take(uint64_t n) {
        if (n > size_ - at_) damaged("it ends in the middle of a value");
        at_ += n;
        return bytes_ + at_ - n;
    }

    uint64_t unsigned_number(uint64_t width) {
        uint64_t value = 0;
        std::memcpy(&value, take(width), width);
        return value;
    }

    // Bytes behind their length of `width` bytes.
    std::string counted_text(uint64_t width) {
        const uint64_t n = unsigned_number(width);
        return std::string(reinterpret_cast<const char*>(take(n)), n);
    }

    std::string line() {
        const void* const end = std::memchr(bytes_ + at_, '\n', size_ - at_);
        if (end == nullptr) damaged("a name has no end");
        const uint64_t n = static_cast<uint64_t>(static_cast<const unsigned char*>(end) - bytes_) - at_;
        return std::string(reinterpret_cast<const char*>(take(n + 1)), n);
    }

    // -- values

    PickleValue& made(Kind kind) {
        if (pickle_.values_.size() >= most_values) too_large(most_values, "values");
        PickleValue& value = pickle_.values_.emplace_back();
        value.kind = kind;
        return value;
    }

    PickleValue& push(Kind kind) {
        PickleValue& value = made(kind);
        stack_.push_back(&value);
        return value;
    }

    void push_integer(int64_t integer, Kind kind = Kind::integer) { push(kind).integer = integer; }
    void push_text(std::string text) { push(Kind::text).text = std::move(text); }

    // Values above the last mark are all that may be taken.
    PickleValue* pop_value() {
        if (stack_.size() <= (marks_.empty() ? 0 : marks_.back())) damaged("a value is missing");
        PickleValue* const value = stack_.back();
        stack_.pop_back();
        return value;
    }

    PickleValue& top(Kind kind, const char* what) {
        PickleValue* const value = pop_value();
        stack_.push_back(value);
        if (value->kind != kind) damaged(std::string("there is no ") + what + " to add to");
        return *value;
    }

    std::vector<const PickleValue*> pop_to_mark() {
        if (marks_.empty()) damaged("a mark is missing");
        const auto first = stack_.begin() + static_cast<std::ptrdiff_t>(marks_.back());
        std::vector<const PickleValue*> items(first, stack_.end());
        stack_.erase(first, stack_.end());
        marks_.pop_back();
        return items;
    }

    std::vector<const PickleValue*> pop_several(size_t n) {
        std::vector<const PickleValue*> items(n);
        for (size_t i = n; i-- > 0;) items[i] = pop_value();
        return items;
    }

    // Counted, because a few bytes can ask for the items of a long list again and again.
    void add(PickleValue& to, const std::vector<const PickleValue*>& items) {
        added_ += items.size();
        if (added_ > most_items) too_large(most_items, "items");
        to.items.insert(to.items.end(), items.begin(), items.end());
    }

    // -- opcodes; each function does those of its kind and says whether it knew this one

    bool structure(unsigned char opcode) {
        switch (opcode) {
            case proto:
                take(1);
                return true;
            case frame:
                take(8);
                return true;
            case mark:
                marks_.push_back(stack_.size());
                return true;
            case pop:
                pop_value();
                return true;
            case pop_mark:
                pop_to_mark();
                return true;
            case empty_tuple:
                push(Kind::tuple);
                return true;
            case empty_list:
                push(Kind::list);
                return true;
            case empty_dict:
                push(Kind::dictionary);
                return true;
            case tuple:
                push_tuple(pop_to_mark());
                return true;
            case tuple1:
            case tuple2:
            case tuple3:
                push_tuple(pop_several(1u + opcode - tuple1));
                return true;
            case append:
                append_items(pop_several(1));
                return true;
            case appends:
                append_items(pop_to_mark());
                return true;
            case setitem:
                set_items(pop_several(2));
                return true;
            case setitems:
                set_items(pop_to_mark());
                return true;
            default:
                return false;
        }
    }

    void push_tuple(const std::vector<const PickleValue*>& items) { push(Kind::tuple).items = items; }

    void append_items(const std::vector<const PickleValue*>& items) { add(top(Kind::list, "list"), items); }

    void set_items(const std::vector<const PickleValue*>& items) {
        if (items.size() % 2 != 0) damaged("a key has no value");
        add(top(Kind::dictionary, "dictionary"), items);
    }

    bool plain_value(unsigned char opcode) {
        switch (opcode) {
            case none:
                push(Kind::none);
                return true;
            case newtrue:
            case newfalse:
                push_integer(opcode == newtrue, Kind::boolean);
                return true;
            case binint:
                push_integer(static_cast<int32_t>(unsigned_number(4)));
                return true;
            case binint1:
                push_integer(static_cast<int64_t>(unsigned_number(1)));
                return true;
            case binint2:
                push_integer(static_cast<int64_t>(unsigned_number(2)));
                return true;
            case long1:
                push_integer(long_integer());
                return true;
            case binfloat:
                push(Kind::number).number = big_endian_double();
                return true;
            case short_binunicode:
            case short_binstring:
            case short_binbytes:
                push_text(counted_text(1));
                return true;
            case binunicode:
            case binstring:
            case binbytes:
                push_text(counted_text(4));
                return true;
            default:
                return false;
        }
    }

    // Two's complement, in as few bytes as will do.
    int64_t long_integer() {
        const uint64_t n = unsigned_number(1);
        if (n > 8) refuse("a whole number of more than 64 bits");
        if (n == 0) return 0;
        const uint64_t bits = unsigned_number(n);
        const unsigned spare = 64 - 8 * static_cast<unsigned>(n);
        return static_cast<int64_t>(bits << spare) >> spare;
    }

    double big_endian_double() {
        unsigned char bytes[8] = {};
        const unsigned char* const from = take(sizeof(bytes));
        std::reverse_copy(from, from + sizeof(bytes), bytes);
        double value;
        std::memcpy(&value, bytes, sizeof(value));
        return value;
    }

    bool memory(unsigned char opcode) {
        switch (opcode) {
            case binput:
                remember(unsigned_number(1));
                return true;
            case long_binput:
                remember(unsigned_number(4));
                return true;
            case memoize:
                remember(memo_.size());
                return true;
            case binget:
                recall(unsigned_number(1));
                return true;
            case long_binget:
                recall(unsigned_number(4));
                return true;
            default:
                return false;
        }
    }

    void remember(uint64_t place) {
        PickleValue* const value = pop_value();
        stack_.push_back(value);
        memo_[place] = value;
    }

    void recall(uint64_t place) {
        const auto found = memo_.find(place);
        if (found == memo_.end()) damaged("it recalls what it never noted");
        stack_.push_back(found->second);
    }

    bool object(unsigned char opcode) {
        switch (opcode) {
            case global: {
                const std::string module = line();
                push_name(module, line());
                return true;
            }
            case stack_global: {
                const auto names = pop_several(2);
                if (names[0]->kind != Kind::text || names[1]->kind != Kind::text) damaged("a name is no text");
                push_name(names[0]->text, names[1]->text);
                return true;
            }
            case binpersid:
                push_storage(*pop_value());
                return true;
            case reduce: {
                const auto call = pop_several(2);
                push_result(*call[0], *call[1]);
                return true;
            }
            case build: {
                pop_value();  // the metadata of a state dict, which says nothing about its tensors
                const PickleValue* const of = pop_value();
                if (of->kind != Kind::dictionary) refuse("BUILD on something other than a dictionary");
                stack_.push_back(const_cast<PickleValue*>(of));
                return true;
            }
            default:
                return false;
        }
    }

    // Names are refused here, where they are read: none gets as far as being called.
    void push_name(const std::string& module, const std::string& name) {
        const std::string full = module + "." + name;
        if (known_names().count(full) == 0) refuse("the name " + quoted_name(full));
        push(Kind::name).text = full;
    }

    // ('storage', torch.FloatStorage, its key, where it was, its elements)
    void push_storage(const PickleValue& id) {
        const auto& part = id.items;
        const bool fits = id.kind == Kind::tuple && part.size() == 5 && part[0]->text == "storage" &&
                          part[1]->kind == Kind::name && part[2]->kind == Kind::text && part[4]->kind == Kind::integer;
        if (!fits || part[4]->integer < 0) damaged("a storage is not described as torch.save does it");
        const KnownName& type = known_names().at(part[1]->text);
        if (type.role != Role::storage_type) refuse("a storage of type " + quoted_name(part[1]->text));
        PickleValue& storage = push(Kind::storage);
        storage.text = part[2]->text;
        storage.integer = part[4]->integer;
        dtype_of_storage_[&storage] = type.dtype;
    }

    void push_result(const PickleValue& callee, const PickleValue& arguments) {
        if (callee.kind != Kind::name) refuse("a call of something that is no name");
        if (arguments.kind != Kind::tuple) damaged("a call has no list of arguments");
        const auto& given = arguments.items;
        switch (known_names().at(callee.text).role) {
            case Role::ordered_dict:
                push_dictionary(given);
                return;
            case Role::rebuild_tensor:
                push_tensor(given);
                return;
            case Role::rebuild_parameter:
                if (given.empty() || given[0]->kind != Kind::tensor) damaged("a parameter is no tensor");
                stack_.push_back(const_cast<PickleValue*>(given[0]));
                return;
            case Role::size:
                if (given.size() != 1 || given[0]->kind != Kind::tuple) damaged("a torch.Size is no tuple");
                stack_.push_back(const_cast<PickleValue*>(given[0]));
                return;
            case Role::device:
                push(Kind::none);
                return;
            case Role::storage_type:
            case Role::element_type:
                break;
        }
        refuse("a call of " + quoted_name(callee.text));
    }

    // OrderedDict(), or OrderedDict([[key, value], ...]) as old versions of Python wrote it.
    void push_dictionary(const std::vector<const PickleValue*>& given) {
        if (given.size() > 1 || (given.size() == 1 && given[0]->kind != Kind::list))
            damaged("an OrderedDict is not made of a list");
        PickleValue& dictionary = push(Kind::dictionary);
        if (given.empty()) return;
        for (const PickleValue* const pair : given[0]->items) {
            if ((pair->kind != Kind::list && pair->kind != Kind::tuple) || pair->items.size() != 2)
                damaged("an OrderedDict's items are no pairs");
            add(dictionary, pair->items);
        }
    }

    // _rebuild_tensor_v2(storage, offset, shape, strides, requires_grad, hooks, ...), all but the last in elements.
    void push_tensor(const std::vector<const PickleValue*>& given) {
        const bool fits = given.size() >= 4 && given[0]->kind == Kind::storage && given[1]->kind == Kind::integer &&
                          given[2]->kind == Kind::tuple && given[3]->kind == Kind::tuple;
        if (!fits) damaged("a tensor is not described as torch.save does it");
        TensorView view;
        view.dtype = dtype_of_storage_.at(given[0]);
        view.shape = extents(*given[2]);
        view.strides = extents(*given[3]);
        if (given[1]->integer < 0 || view.shape.size() != view.strides.size())
            damaged("a tensor has an impossible shape");
        place_in_storage(view, *given[0], static_cast<uint64_t>(given[1]->integer));
        view.file = path_;
        PickleValue& value = push(Kind::tensor);
        value.integer = static_cast<int64_t>(pickle_.tensors_.size());
        pickle_.tensors_.push_back(std::move(view));
    }

    std::vector<uint64_t> extents(const PickleValue& tuple) const {
        if (tuple.items.size() > most_dimensions) damaged("a tensor has an impossible shape");
        std::vector<uint64_t> numbers;
        for (const PickleValue* const item : tuple.items) {
            if (item->kind != Kind::integer || item->integer < 0) damaged("a tensor has an impossible shape");
            numbers.push_back(static_cast<uint64_t>(item->integer));
        }
        return numbers;
    }

    // Finds a tensor's bytes; those of its first and its last element must lie in the storage, and so all do.
    void place_in_storage(TensorView& view, const PickleValue& storage, uint64_t offset) const {
        const uint64_t element = dtype_bytes(view.dtype), elements = static_cast<uint64_t>(storage.integer);
        const StorageBytes bytes = storages_(storage.text);
        if (elements > bytes.size / element) damaged("the storage " + quoted_name(storage.text) + " is cut off");
        uint64_t last = 0, count = 1;
        bool overflow = false;
        for (size_t d = 0; d < view.shape.size(); d++) {
            overflow |= __builtin_mul_overflow(count, view.shape[d], &count);
            if (view.shape[d] == 0) continue;
            uint64_t reach = 0;
            overflow |= __builtin_mul_overflow(view.shape[d] - 1, view.strides[d], &reach);
            overflow |= __builtin_add_overflow(last, reach, &last);
        }
        const bool empty = std::find(view.shape.begin(), view.shape.end(), 0u) != view.shape.end();
        if (overflow || offset > elements || (!empty && last >= elements - offset))
            damaged("a tensor reaches beyond its storage " + quoted_name(storage.text));
        view.data = bytes.data + offset * element;
        view.bytes = empty ? 0 : (last + 1) * element;
        if (is_row_major(view)) view.strides.clear();
    }

    static bool is_row_major(const TensorView& view) {
        uint64_t expected = 1;
        for (size_t d = view.shape.size(); d-- > 0;) {
            if (view.shape[d] != 1 && view.strides[d] != expected) return false;
            expected *= view.shape[d];
        }
        return true;
    }

    Pickle& pickle_;
    const unsigned char* bytes_;
    uint64_t size_, at_ = 0;
    const Pickle::Storages& storages_;
    const std::string& file_;
    std::shared_ptr<const std::string> path_;
    std::vector<PickleValue*> stack_;
    std::vector<size_t> marks_;
    uint64_t added_ = 0;
    std::unordered_map<uint64_t, PickleValue*> memo_;
    std::unordered_map<const PickleValue*, DType> dtype_of_storage_;
};

const PickleValue* PickleValue::find(const std::string& key) const {
    if (kind != Kind::dictionary) return nullptr;
    for (size_t i = items.size(); i >= 2; i -= 2)
        if (items[i - 2]->kind == Kind::text && items[i - 2]->text == key) return items[i - 1];
    return nullptr;
}

Pickle::Pickle(const unsigned char* bytes, uint64_t size, const Storages& storages, const std::string& file) {
    if (size > longest_pickle)
        throw BadInput(file + ": its pickle has " + std::to_string(size) + " bytes, more than a model's state dict");
    root_ = PickleMachine(*this, bytes, size, storages, file).run();
}

}  // namespace lnfree
