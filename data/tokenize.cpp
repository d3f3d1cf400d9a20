#include "data/tokenize.h"

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <condition_variable>
#include <cstdlib>
#include <deque>
#include <exception>
#include <filesystem>
#include <mutex>
#include <optional>
#include <thread>

#include "data/documents.h"
#include "data/files.h"
#include "data/json.h"
#include "data/random.h"
#include "data/shards.h"
#include "data/tokenizer.h"

namespace lnfree {

bool is_held_out(uint64_t seed, uint64_t index, double fraction) {
    const uint64_t of_seed = SplitMix64(seed).next();
    return SplitMix64(of_seed ^ index).uniform() < fraction;
}

void TokenSpool::append(const int32_t* tokens, uint64_t n) {
    memory_.insert(memory_.end(), tokens, tokens + n);
    size_ += n;
    if (memory_.size() >= most_in_memory_) spill();
}

void TokenSpool::drain(const std::function<void(const int32_t* tokens, uint64_t n)>& consume) {
    if (file_ != nullptr) {
        spill();
        std::rewind(file_.get());
        memory_.resize(most_in_memory_);
        for (uint64_t left = size_; left > 0;) {
            const uint64_t n = std::min(left, most_in_memory_);
            if (std::fread(memory_.data(), sizeof(int32_t), n, file_.get()) != n) throw failure("read");
            consume(memory_.data(), n);
            left -= n;
        }
        file_.reset();
    } else {
        consume(memory_.data(), memory_.size());
    }
    memory_.clear();
    size_ = 0;
}

void TokenSpool::spill() {
    if (file_ == nullptr) create_file();
    if (std::fwrite(memory_.data(), sizeof(int32_t), memory_.size(), file_.get()) != memory_.size() ||
        std::fflush(file_.get()) != 0) {
        throw failure("write");
    }
    memory_.clear();
}

void TokenSpool::create_file() {
    std::string name = prefix_ + ".tmp-XXXXXX";
    const int descriptor = ::mkstemp(name.data());
    if (descriptor < 0) throw failure("create");
    ::unlink(name.c_str());  // nothing is left behind, however this run ends
    file_.reset(::fdopen(descriptor, "w+b"));
    if (file_ == nullptr) throw failure("open");
}

RunFailure TokenSpool::failure(const char* what) const {
    return RunFailure(std::string("cannot ") + what + " the temporary file of " + prefix_ + ": " + errno_text(errno) +
                      "; it needs 4 bytes per token of the longest document");
}

namespace {

// Sends each document to the training or the validation shards. Each document waits until the next one begins, because
// the last one has a special part: if all the others went to one side, it goes to the other, and if it is the only one,
// its first tokens are for training and its last ones for validation.
class SplitWriter {
  public:
    SplitWriter(const TokenizeOptions& options, uint32_t vocab_size)
        : fraction_(options.val_fraction),
          seed_(options.seed),
          train_(options.out + "_train", vocab_size, options.shard_tokens),
          val_(options.out + "_val", vocab_size, options.shard_tokens),
          waiting_(options.out) {}

    // The next tokens of the current document, and whether they are its last.
    void append(const int32_t* tokens, uint64_t n, bool ends_document) {
        if (document_waits_) release(is_held_out(seed_, documents_ - 1, fraction_));
        if (fraction_ > 0) {
            waiting_.append(tokens, n);
        } else {
            to_train(tokens, n);
        }
        if (!ends_document) return;
        ++documents_;
        document_waits_ = fraction_ > 0;
        if (!document_waits_) ++result.documents_train;
    }

    // Publishes all shards; to be called after the last document. Their paths are in result.paths. Shards of an earlier
    // run under the same prefix are replaced or removed.
    void finish() {
        if (document_waits_) release_last();
        result.paths = train_.finish();
        const std::vector<std::string> val_paths = val_.finish();
        result.paths.insert(result.paths.end(), val_paths.begin(), val_paths.end());
    }

    uint64_t documents() const { return documents_; }  // complete ones

    TokenizeResult result;  // documents, tokens and paths are kept here

  private:
    void to_train(const int32_t* tokens, uint64_t n) {
        train_.append(tokens, n);
        result.tokens_train += n;
    }

    void to_val(const int32_t* tokens, uint64_t n) {
        val_.append(tokens, n);
        result.tokens_val += n;
    }

    void release(bool held_out) {
        waiting_.drain([&](const int32_t* tokens, uint64_t n) { held_out ? to_val(tokens, n) : to_train(tokens, n); });
        ++(held_out ? result.documents_val : result.documents_train);
        document_waits_ = false;
    }

    void release_last() {
        if (documents_ == 1) return split_only_document();
        const bool others_in_val = result.documents_train == 0;
        const bool others_in_train = result.documents_val == 0;
        release(others_in_train || (!others_in_val && is_held_out(seed_, documents_ - 1, fraction_)));
    }

    void split_only_document() {
        const uint64_t all = waiting_.size();
        const double share = std::round(fraction_ * static_cast<double>(all));
        const uint64_t val = std::min(std::max<uint64_t>(static_cast<uint64_t>(share), 1), all - 1);
        uint64_t train_left = all - val;
        waiting_.drain([&](const int32_t* tokens, uint64_t n) {
            const uint64_t head = std::min(n, train_left);
            to_train(tokens, head);
            to_val(tokens + head, n - head);
            train_left -= head;
        });
        result.documents_train = 1;
        result.documents_val = val > 0 ? 1 : 0;
        document_waits_ = false;
    }

    double fraction_;
    uint64_t seed_;
    ShardWriter train_;
    ShardWriter val_;
    TokenSpool waiting_;           // the document being read, or the one before it
    bool document_waits_ = false;  // the document in waiting_ is complete
    uint64_t documents_ = 0;
};

// A few pieces on their way from the reader over one of the tokenising threads to the writer.
struct TokenizeBatch {
    std::vector<DocumentPiece> pieces;
    uint64_t bytes = 0;           // of the pieces
    uint64_t input_position = 0;  // DocumentReader::bytes_done() after them
    std::vector<int32_t> tokens;
    std::vector<uint64_t> document_ends;  // offsets in tokens just after each end-of-text
    uint64_t text_bytes = 0;
    uint64_t special_as_text = 0;
    uint64_t skipped_lines = 0;
    std::string first_skipped_line;
    std::exception_ptr error;  // what went wrong instead
    bool done = false;
};

// The queue between the three: batches are taken by any tokenising thread, and leave in the order in which they came.
class BatchQueue {
  public:
    using Batch = std::shared_ptr<TokenizeBatch>;

    // Waits for room, then adds a batch. False if the queue was stopped.
    bool push(Batch batch) {
        std::unique_lock<std::mutex> lock(mutex_);
        changed_.wait(lock, [&] { return stopped_ || ordered_.empty() || bytes_ + batch->bytes <= most_bytes_; });
        if (stopped_) return false;
        bytes_ += batch->bytes;
        ordered_.push_back(batch);
        if (!batch->done) todo_.push_back(std::move(batch));
        changed_.notify_all();
        return true;
    }

    // Nothing more will be pushed.
    void close() { set(closed_); }

    // Everyone is to give up.
    void stop() { set(stopped_); }

    // The next batch to tokenise; null when there will be none.
    Batch take() {
        std::unique_lock<std::mutex> lock(mutex_);
        changed_.wait(lock, [&] { return stopped_ || closed_ || !todo_.empty(); });
        if (stopped_ || todo_.empty()) return nullptr;
        Batch batch = std::move(todo_.front());
        todo_.pop_front();
        return batch;
    }

    void mark_done(const Batch& batch) {
        const std::lock_guard<std::mutex> lock(mutex_);
        batch->done = true;
        changed_.notify_all();
    }

    // The oldest batch, once it is done; null after the last.
    Batch pop() {
        std::unique_lock<std::mutex> lock(mutex_);
        changed_.wait(lock, [&] { return ordered_.empty() ? closed_ : ordered_.front()->done; });
        if (ordered_.empty()) return nullptr;
        Batch batch = std::move(ordered_.front());
        ordered_.pop_front();
        bytes_ -= batch->bytes;
        changed_.notify_all();
        return batch;
    }

  private:
    static constexpr uint64_t most_bytes_ = 32 << 20;  // in flight, unless one batch alone is larger

    void set(bool& flag) {
        const std::lock_guard<std::mutex> lock(mutex_);
        flag = true;
        changed_.notify_all();
    }

    std::mutex mutex_;
    std::condition_variable changed_;
    std::deque<Batch> ordered_;
    std::deque<Batch> todo_;
    uint64_t bytes_ = 0;
    bool closed_ = false;
    bool stopped_ = false;
};

// Reads all documents into batches of at least 256 KiB.
void read_batches(DocumentReader& reader, BatchQueue& queue) {
    constexpr uint64_t batch_bytes = 256 << 10;
    auto batch = std::make_shared<TokenizeBatch>();
    try {
        for (DocumentPiece piece; reader.next(piece);) {
            batch->bytes += piece.bytes.size() + sizeof(DocumentPiece);
            batch->pieces.push_back(std::move(piece));
            if (batch->bytes < batch_bytes) continue;
            batch->input_position = reader.bytes_done();
            if (!queue.push(std::exchange(batch, std::make_shared<TokenizeBatch>()))) return;
        }
        batch->input_position = reader.bytes_done();
        queue.push(std::move(batch));
    } catch (...) {
        // What was read before the failure goes first, so that an earlier mistake in a document is the one reported.
        auto failure = std::make_shared<TokenizeBatch>();
        failure->error = std::current_exception();
        failure->done = true;
        queue.push(std::move(batch));
        queue.push(std::move(failure));
    }
    queue.close();
}

// The text of a piece; nothing for a line that is to be passed over, which is then noted.
std::optional<std::string> text_of(DocumentPiece&& piece, const TokenizeOptions& options, TokenizeBatch& batch) {
    try {
        return piece_text(std::move(piece), options.text_key);
    } catch (const BadLine& bad) {
        if (!options.skip_bad_lines) throw BadInput(std::string(bad.what()) + "; --skip-bad-lines passes over such");
        if (batch.skipped_lines++ == 0) batch.first_skipped_line = bad.what();
        return std::nullopt;
    }
}

// Every document is followed by end-of-text.
void tokenize_batch(const Tokenizer& tokenizer, const TokenizeOptions& options, TokenizeBatch& batch) {
    for (DocumentPiece& piece : batch.pieces) {
        const bool ends_document = piece.ends_document, continues = piece.continues;
        const std::optional<std::string> text = text_of(std::move(piece), options, batch);
        if (!text) continue;
        batch.text_bytes += text->size();
        batch.special_as_text += tokenizer.encode(*text, batch.tokens, options.allow_special, continues);
        if (!ends_document) continue;
        batch.tokens.push_back(tokenizer.end_of_text());
        batch.document_ends.push_back(batch.tokens.size());
    }
    batch.pieces = {};
}

// Tokenises batches until there are none left.
void tokenize_batches(const Tokenizer& tokenizer, const TokenizeOptions& options, BatchQueue& queue) {
    while (const BatchQueue::Batch batch = queue.take()) {
        try {
            tokenize_batch(tokenizer, options, *batch);
        } catch (...) {
            batch->error = std::current_exception();
        }
        queue.mark_done(batch);
    }
}

void count_batch(const TokenizeBatch& batch, TokenizeResult& result) {
    result.bytes += batch.text_bytes;
    result.special_as_text += batch.special_as_text;
    result.skipped_lines += batch.skipped_lines;
    if (result.first_skipped_line.empty()) result.first_skipped_line = batch.first_skipped_line;
}

// Runs the reader and the tokenising threads and writes what they make.
void run_tokenize_threads(const Tokenizer& tokenizer, const TokenizeOptions& options, DocumentReader& reader,
                          SplitWriter& writer, const TokenizeProgress& progress) {
    BatchQueue queue;
    std::vector<std::thread> threads;
    struct StopAndJoin {
        BatchQueue& queue;
        std::vector<std::thread>& threads;
        ~StopAndJoin() {
            queue.stop();
            for (std::thread& thread : threads) thread.join();
        }
    } stop_and_join{queue, threads};

    const int cores = static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
    const int workers = options.threads > 0 ? options.threads : cores;
    threads.emplace_back([&] { read_batches(reader, queue); });
    for (int i = 0; i < workers; ++i) threads.emplace_back([&] { tokenize_batches(tokenizer, options, queue); });

    while (const BatchQueue::Batch batch = queue.pop()) {
        if (batch->error) std::rethrow_exception(batch->error);
        uint64_t at = 0;
        for (const uint64_t end : batch->document_ends) {
            writer.append(batch->tokens.data() + at, end - at, true);
            at = end;
        }
        if (at < batch->tokens.size()) writer.append(batch->tokens.data() + at, batch->tokens.size() - at, false);
        count_batch(*batch, writer.result);
        if (progress) progress(batch->input_position, reader.bytes_total());
    }
}

// The content of PREFIX.json.
Json tokenize_report(const TokenizeOptions& options, const Tokenizer& tokenizer, const TokenizeResult& result) {
    Json about = {{"name", tokenizer.name()},
                  {"fingerprint", tokenizer.fingerprint()},
                  {"vocab_size", tokenizer.vocab_size()},
                  {"end_of_text", tokenizer.end_of_text()}};
    const auto base_name = [](const std::string& path) {
        const std::filesystem::path absolute = std::filesystem::absolute(path).lexically_normal();
        return absolute.has_filename() ? absolute.filename().string() : absolute.parent_path().filename().string();
    };
    if (tokenizer.name() != "byte") about["folder"] = base_name(options.tokenizer);
    Json inputs = Json::array();
    for (const std::string& input : options.inputs) inputs.push_back(input == "-" ? input : base_name(input));
    Json report = {{"version", 1},
                   {"tokenizer", about},
                   {"documents", {{"train", result.documents_train}, {"val", result.documents_val}}},
                   {"tokens", {{"train", result.tokens_train}, {"val", result.tokens_val}}},
                   {"seed", options.seed},
                   {"val_fraction", options.val_fraction},
                   {"allow_special", options.allow_special},
                   {"inputs", inputs}};
    if (result.special_as_text > 0) report["special_as_text"] = result.special_as_text;
    if (result.skipped_lines > 0) report["skipped_lines"] = result.skipped_lines;
    return report;
}

void check_tokenize_options(const TokenizeOptions& options) {
    if (options.inputs.empty()) throw BadInput("nothing to tokenise; name files with --input");
    if (options.out.empty() || options.out.back() == '/') throw BadInput("--out needs a prefix such as data/stories");
    if (!(options.val_fraction >= 0 && options.val_fraction < 1)) {
        throw BadInput("--val-fraction " + std::to_string(options.val_fraction) + " is not in [0, 1)");
    }
    if (options.shard_tokens == 0) throw BadInput("--shard-tokens must be at least 1");
    if (options.threads < 0) throw BadInput("--threads must not be negative");
}

// Puts shards and PREFIX.json in place. If that fails half-way (a disk error), none of them stays.
void publish_tokens(const TokenizeOptions& options, const Tokenizer& tokenizer, SplitWriter& writer) {
    const std::string report = options.out + ".json";
    try {
        std::filesystem::remove(report);  // an earlier run's, which would say wrong things about the new shards
        writer.finish();
        write_file_atomically(report, tokenize_report(options, tokenizer, writer.result).dump(2) + "\n");
        writer.result.paths.push_back(report);
    } catch (...) {
        for (const char* split : {"_train", "_val"}) {
            for (uint64_t n = 0; std::remove(shard_name(options.out + split, n).c_str()) == 0; ++n) {
            }
        }
        throw;
    }
}

// The part of tokenize_files that writes, into a folder that exists.
TokenizeResult tokenize_documents(const TokenizeOptions& options, const Tokenizer& tokenizer, DocumentReader& reader,
                                  const TokenizeProgress& progress) {
    SplitWriter writer(options, tokenizer.vocab_size());
    run_tokenize_threads(tokenizer, options, reader, writer, progress);
    if (writer.documents() == 0) {
        const std::string others = options.inputs.size() > 1 ? " and the other inputs" : "";
        const std::string first = writer.result.first_skipped_line;
        throw BadInput("there are no documents in " + options.inputs.front() + others +
                       (first.empty() ? "; give some text" : "; all lines were passed over, the first: " + first));
    }
    publish_tokens(options, tokenizer, writer);
    return writer.result;
}

}  // namespace

TokenizeResult tokenize_files(const TokenizeOptions& options, const TokenizeProgress& progress) {
    const auto start = std::chrono::steady_clock::now();
    check_tokenize_options(options);
    const std::unique_ptr<Tokenizer> tokenizer = load_tokenizer(options.tokenizer);
    DocumentOptions document_options;
    document_options.separator = unescape_separator(options.document_separator);
    document_options.format = parse_input_format(options.format);
    document_options.split = tokenizer->split();
    document_options.unbroken = tokenizer->unbroken();
    DocumentReader reader(options.inputs, document_options);
    std::error_code error;
    const std::string folder = folder_of(options.out);
    const bool folder_is_new = std::filesystem::create_directories(folder, error);
    if (error) throw BadInput("cannot make the folder of --out " + options.out + ": " + error.message());
    try {
        TokenizeResult result = tokenize_documents(options, *tokenizer, reader, progress);
        result.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
        return result;
    } catch (...) {
        if (folder_is_new) std::filesystem::remove(folder, error);  // unless something else came into it
        throw;
    }
}

}  // namespace lnfree
