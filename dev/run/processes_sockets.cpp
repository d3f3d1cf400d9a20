#include "dev/run/processes_sockets.h"

#include <poll.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <condition_variable>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <mutex>
#include <optional>
#include <random>
#include <sstream>
#include <thread>
#include <utility>
#include <vector>

#include "data/files.h"
#include "dev/run/sockets.h"

namespace lnfree {

namespace {

constexpr char kGoOn[] = "--resume goes on from the last checkpoint";
// Seconds at most that one of ours takes to say what it has to once it is connected; and until process 0 answers, which may
// have to listen to others before.
constexpr double kHello = 2, kAnswer = 6;

std::string name_of_this_machine() {
    char name[256] = "";
    ::gethostname(name, sizeof name - 1);
    return name;
}

// ----- the file

// Where process 0 listens, and by what it and those that look for it know each other.
struct Meeting {
    std::string machine;
    int port = 0;
    uint64_t question = 0, answer = 0;
    std::vector<std::string> addresses;
};

constexpr char kFirstLine[] = "gpt2-lnfree rendezvous 1";

std::string text_of(const Meeting& m) {
    std::ostringstream text;
    text << kFirstLine << "\n" << m.machine << "\n" << m.port << " " << m.question << " " << m.answer << "\n";
    for (const std::string& address : m.addresses) text << address << "\n";
    return text.str();
}

// BadInput if the file at `path` holds something else.
Meeting parse_meeting(const std::string& text, const std::string& path) {
    Meeting m;
    std::string first;
    std::istringstream lines(text);
    std::getline(lines, first);
    std::getline(lines, m.machine);
    lines >> m.port >> m.question >> m.answer;
    if (first != kFirstLine || !lines)
        throw BadInput("LNFREE_RENDEZVOUS=" + path +
                       ": there is a file of another kind; name one that is not there yet");
    for (std::string address; lines >> address;) m.addresses.push_back(address);
    return m;
}

constexpr uint64_t kLongest = 1 << 16;

// Nothing: it is not there yet, or cannot be read just now (network file systems). What is wrong with a file of another kind
// process 0 says.
std::optional<Meeting> find_meeting(const std::string& path) {
    std::string text;
    try {
        text = read_file(path, kLongest);
    } catch (const BadInput&) {
        return std::nullopt;
    }
    try {
        return parse_meeting(text, path);
    } catch (const BadInput& e) {
        throw ToldElsewhere(e.what());
    }
}

uint64_t secret() {
    std::random_device random;
    return uint64_t{random()} << 32 | random();
}

void write_meeting(const Meeting& m, const std::string& path) {
    if (std::filesystem::exists(path)) parse_meeting(read_file(path, kLongest), path);  // another kind stays
    const mode_t before = ::umask(S_IRWXG | S_IRWXO);                                   // who can read it can take part
    std::string failure;
    try {
        write_file_atomically(path, text_of(m));
    } catch (const RunFailure& e) {
        failure = e.what();
    }
    ::umask(before);
    if (!failure.empty()) throw BadInput("LNFREE_RENDEZVOUS: " + failure);
}

// Unless somebody has put another there. Left behind, it does no harm.
void remove_meeting(const Meeting& m, const std::string& path) {
    try {
        const std::optional<Meeting> found = find_meeting(path);
        if (found && found->question == m.question) std::filesystem::remove(path);
    } catch (const std::exception&) {
        return;
    }
}

// ----- what goes over the connections before and beside the data

// The first words of who connects, twice: for data, and for ends.
struct Hello {
    uint64_t question;
    int32_t rank, size, for_ends, unused;
};

// On the connection for ends. To process 0 and from it:
enum class News : int32_t {
    all_here,   // from 0: the run begins
    refused,    // from 0: it does not, and 0 has said why
    end,        // to 0: this process has come to its end
    all_ended,  // from 0: all have
    abort,      // to 0, and from there to all: end with this number as exit status
    give_up,    // to 0, which ends all: so many bytes of why follow
};
struct Notice {
    News news;
    int32_t number;
};

// Both connections with a process.
struct Peer {
    FileDescriptor data, ends;
    bool is_there() const { return data.is_open() && ends.is_open(); }
};

bool send_notice(const Peer& to, News news, int number = 0) {
    const Notice notice = {news, number};
    return send_all(to.ends.get(), &notice, sizeof notice);
}

uint64_t refusal(const Meeting& m) {
    return ~m.answer;
}

std::string too_late(const PlaceInRun& place, const std::string& what) {
    std::ostringstream seconds;
    seconds << place.patience;
    return "LNFREE_RENDEZVOUS=" + place.rendezvous + ": " + what + " within " + seconds.str() +
           " s (LNFREE_RENDEZVOUS_SECONDS); start all, with a path on a disk that all see";
}

// ----- process 0's side of the meeting

std::string missing(const std::vector<Peer>& peers) {
    std::string ranks;
    int count = 0;
    for (size_t r = 1; r < peers.size(); r++)
        if (!peers[r].is_there()) ranks += (count++ == 0 ? "" : ", ") + std::to_string(r);
    return (count == 1 ? "process " : "processes ") + ranks + " of " + std::to_string(peers.size());
}

// Why who says this cannot take part; empty: it can.
std::string objection(const std::vector<Peer>& peers, const Hello& hello) {
    const std::string rank = std::to_string(hello.rank);
    if (hello.size != static_cast<int32_t>(peers.size()))
        return "process " + rank + " was started with WORLD_SIZE=" + std::to_string(hello.size) + ", process 0 with " +
               std::to_string(peers.size()) + "; all need the same";
    const Peer& peer = peers[static_cast<size_t>(hello.rank)];  // below WORLD_SIZE, above 0: it has looked itself
    const FileDescriptor& earlier = hello.for_ends != 0 ? peer.ends : peer.data;
    if (earlier.is_open() && !is_over(earlier.get()))  // else it has lost patience and tries again
        return "two processes were started with RANK=" + rank + "; each needs another";
    return "";
}

// Takes a connection in if it is one of ours.
void take_in(std::vector<Peer>& peers, FileDescriptor connection, const Meeting& m) {
    Hello hello{};
    set_patience(connection.get(), kHello);
    if (!receive_all(connection.get(), &hello, sizeof hello) || hello.question != m.question) return;
    const std::string why_not = objection(peers, hello);
    const uint64_t answer = why_not.empty() ? m.answer : refusal(m);
    if (!send_all(connection.get(), &answer, sizeof answer)) return;
    if (!why_not.empty()) throw BadInput(why_not);
    set_patience(connection.get(), 0);
    Peer& peer = peers[static_cast<size_t>(hello.rank)];
    (hello.for_ends != 0 ? peer.ends : peer.data) = std::move(connection);
}

// All others, number by number; [0] stays empty.
std::vector<Peer> gather_others(const PlaceInRun& place) {
    std::vector<Peer> peers(static_cast<size_t>(place.size));
    const double deadline = seconds_now() + place.patience;
    Meeting m;
    const FileDescriptor listener = listen_anywhere(m.port);
    m.machine = name_of_this_machine();
    m.question = secret();
    m.answer = secret();
    m.addresses = addresses_of_this_machine();
    write_meeting(m, place.rendezvous);
    const auto is_there = [](const Peer& peer) { return peer.is_there(); };
    try {
        while (!std::all_of(peers.begin() + 1, peers.end(), is_there)) {
            if (seconds_now() >= deadline) throw BadInput(too_late(place, missing(peers) + " did not come"));
            FileDescriptor next = accept_within(listener.get(), deadline - seconds_now());
            if (next.is_open()) take_in(peers, std::move(next), m);
        }
    } catch (const BadInput&) {
        for (const Peer& peer : peers)
            if (peer.ends.is_open()) send_notice(peer, News::refused);
        remove_meeting(m, place.rendezvous);
        throw;
    }
    remove_meeting(m, place.rendezvous);
    for (size_t r = 1; r < peers.size(); r++) send_notice(peers[r], News::all_here);
    return peers;
}

// ----- the others' side

// Closed if the process there does not know the answer: it is of another run, or none of ours.
FileDescriptor introduce(const std::string& address, const Meeting& m, const PlaceInRun& place, bool for_ends) {
    FileDescriptor connection = connect_to(address, m.port, kAnswer);
    if (!connection.is_open()) return connection;
    const Hello hello = {m.question, place.rank, place.size, for_ends ? 1 : 0, 0};
    uint64_t answer = 0;
    set_patience(connection.get(), kAnswer);
    if (!send_all(connection.get(), &hello, sizeof hello) || !receive_all(connection.get(), &answer, sizeof answer))
        return FileDescriptor();
    if (answer == refusal(m)) throw ToldElsewhere("process 0 says why");
    if (answer != m.answer) return FileDescriptor();
    set_patience(connection.get(), 0);
    return connection;
}

Peer reach(const Meeting& m, const PlaceInRun& place) {
    std::vector<std::string> addresses = m.addresses;
    if (m.machine == name_of_this_machine()) addresses.insert(addresses.begin(), "127.0.0.1");
    for (const std::string& address : addresses) {
        Peer peer;
        peer.data = introduce(address, m, place, false);
        if (!peer.data.is_open()) continue;
        peer.ends = introduce(address, m, place, true);
        if (peer.is_there()) return peer;
    }
    return Peer();
}

// Process 1 speaks for all of those that process 0 cannot speak for.
[[noreturn]] void say_for_all(const PlaceInRun& place, const std::string& line) {
    if (place.rank == 1) throw BadInput(line);
    throw ToldElsewhere(line);
}

Peer find_first(const PlaceInRun& place) {
    const double deadline = seconds_now() + place.patience;
    bool found = false;
    while (seconds_now() < deadline) {
        if (const std::optional<Meeting> m = find_meeting(place.rendezvous)) {
            found = true;
            Peer peer = reach(*m, place);
            if (peer.is_there()) return peer;
        }
        ::usleep(50'000);
    }
    say_for_all(place,
                too_late(place, found ? "process 0 cannot be reached where this file says" : "process 0 did not come"));
}

std::vector<Peer> join_first(const PlaceInRun& place) {
    std::vector<Peer> peers(1);
    peers[0] = find_first(place);
    Notice notice{};
    set_patience(peers[0].ends.get(), place.patience + kAnswer);
    if (!receive_all(peers[0].ends.get(), &notice, sizeof notice))
        say_for_all(place, "process 0 has ended before all others had come");
    if (notice.news != News::all_here) throw ToldElsewhere("process 0 says why");
    set_patience(peers[0].ends.get(), 0);
    return peers;
}

// ----- the run

class SocketProcesses final : public LaunchedProcesses {
  public:
    SocketProcesses(const PlaceInRun& place, std::function<void(const std::string&)> say)
        : rank_(place.rank),
          size_(place.size),
          say_(std::move(say)),
          peers_(rank_ == 0 ? gather_others(place) : join_first(place)),
          names_(static_cast<size_t>(size_), "a machine") {
        start_watching();
        const std::vector<std::string> names = machines();
        for (int r = 0; r < size_; r++) {
            if (names[static_cast<size_t>(r)] != machine()) continue;
            on_this_machine_++;
            if (r < rank_) place_on_machine_++;
        }
        if (place.on_machine >= 0) place_on_machine_ = place.on_machine;
        const std::lock_guard<std::mutex> lock(mutex_);
        names_ = names;
    }
    ~SocketProcesses() override {
        if (watcher_.joinable()) watcher_.detach();  // the process is about to end by something that was not foreseen
    }
    int rank() const override { return rank_; }
    int size() const override { return size_; }
    int on_this_machine() const override { return on_this_machine_; }
    int place_on_machine() const override { return place_on_machine_; }
    std::string machine() const override { return name_of_this_machine(); }

    void all_gather(void* all, int64_t bytes, const std::vector<int64_t>& counts) override {
        const Stopwatch watch(*this);
        gather(static_cast<char*>(all), static_cast<char*>(all) + bytes * before(counts, rank_), bytes, counts);
        spread(all, bytes * before(counts, size_));
    }
    void broadcast(void* data, int64_t n) override {
        const Stopwatch watch(*this);
        spread(data, n);
    }
    void collect(real* all, const real* mine, const std::vector<int64_t>& counts) override {
        const Stopwatch watch(*this);
        if (rank_ == 0 && mine != all) std::copy(mine, mine + counts[0], all);
        gather(reinterpret_cast<char*>(all), reinterpret_cast<const char*>(mine), sizeof(real), counts);
    }
    void exchange(const real* flat, const std::vector<Range>& pieces, const std::vector<bool>& senders,
                  const std::vector<real*>& received) override {
        const Stopwatch watch(*this);
        if (rank_ != 0) {
            if (flat != nullptr)
                for (const Range& piece : pieces) give(peers_[0], flat + piece.first, piece.size());
            for (int q = 0; q < size_; q++)
                if (senders[static_cast<size_t>(q)]) take(peers_[0], received[static_cast<size_t>(q)], mine(pieces));
            return;
        }
        // All of it is here before the first piece goes on, so that nobody waits for one who waits.
        std::vector<std::vector<std::vector<real>>> from(static_cast<size_t>(size_));
        for (size_t q = 0; q < from.size(); q++)
            for (size_t r = 0; senders[q] && r < pieces.size(); r++) {
                from[q].emplace_back(static_cast<size_t>(pieces[r].size()));
                if (q == 0) std::copy(flat + pieces[r].first, flat + pieces[r].last, from[q][r].data());
                if (q != 0) take(peers_[q], from[q][r].data(), pieces[r].size());
            }
        for (size_t q = 0; q < from.size(); q++)
            for (size_t r = 0; r < from[q].size(); r++) {
                if (r == 0) std::copy(from[q][0].data(), from[q][0].data() + pieces[0].size(), received[q]);
                if (r != 0) give(peers_[r], from[q][r].data(), pieces[r].size());
            }
    }

    bool all_end(double seconds) override {
        std::unique_lock<std::mutex> lock(mutex_);
        if (rank_ == 0)
            note_end();
        else
            send_notice(peers_[0], News::end);
        const auto ended = [this] { return all_ended_; };
        if (seconds >= 0) return changed_.wait_for(lock, std::chrono::duration<double>(seconds), ended);
        changed_.wait(lock, ended);
        return true;
    }
    void finalize() override {
        if (watcher_.joinable()) watcher_.join();
    }
    void abort(int status) override {
        const std::lock_guard<std::mutex> lock(mutex_);
        end_all(status);
    }
    void give_up(const std::string& line) override {
        std::unique_lock<std::mutex> lock(mutex_);
        if (rank_ == 0) {
            say_(of_process(0, names_[0], line));
            end_all(1);
        }
        send_notice(peers_[0], News::give_up, static_cast<int>(line.size()));
        send_all(peers_[0].ends.get(), line.data(), line.size());
        lock.unlock();
        ::sleep(10);  // process 0 ends this one
        ::_exit(1);
    }

  private:
    const int rank_, size_;
    int on_this_machine_ = 0, place_on_machine_ = 0;
    const std::function<void(const std::string&)> say_;
    const std::vector<Peer> peers_;  // of process 0 all, by number; of the others process 0 alone

    std::mutex mutex_;  // for what follows, and for what is sent about ends
    std::condition_variable changed_;
    std::vector<std::string> names_;  // of all machines, once they are known
    int ends_ = 0;
    bool all_ended_ = false;
    std::thread watcher_;

    // ----- data

    int64_t mine(const std::vector<Range>& pieces) const { return pieces[static_cast<size_t>(rank_)].size(); }
    static int64_t before(const std::vector<int64_t>& counts, int r) {
        int64_t sum = 0;
        for (int i = 0; i < r; i++) sum += counts[static_cast<size_t>(i)];
        return sum;
    }
    template <class X>
    void give(const Peer& to, const X* from, int64_t n) {
        if (!send_all(to.data.get(), from, static_cast<size_t>(n) * sizeof(X))) lost();
    }
    template <class X>
    void take(const Peer& from, X* to, int64_t n) {
        if (!receive_all(from.data.get(), to, static_cast<size_t>(n) * sizeof(X))) lost();
    }
    // Everyone's in process 0's `all`, where its own lies already.
    void gather(char* all, const char* mine, int64_t bytes, const std::vector<int64_t>& counts) {
        if (rank_ != 0) return give(peers_[0], mine, bytes * counts[static_cast<size_t>(rank_)]);
        for (int r = 1; r < size_; r++)
            take(peers_[static_cast<size_t>(r)], all + bytes * before(counts, r),
                 bytes * counts[static_cast<size_t>(r)]);
    }
    void spread(void* data, int64_t n) {
        if (rank_ != 0) return take(peers_[0], static_cast<char*>(data), n);
        for (size_t r = 1; r < peers_.size(); r++) give(peers_[r], static_cast<const char*>(data), n);
    }
    // The thread that watches hears of the same end, knows more about it, and ends this process.
    [[noreturn]] static void lost() {
        ::sleep(10);
        throw RunFailure("a connection between the processes of this run is broken");
    }

    // ----- ends

    void start_watching() {
        sigset_t all, before;  // signals are the main thread's
        sigfillset(&all);
        pthread_sigmask(SIG_SETMASK, &all, &before);
        watcher_ = std::thread([this] { watch(); });
        pthread_sigmask(SIG_SETMASK, &before, nullptr);
    }
    // Until all have ended; or until one has that should not, and with it this process.
    void watch() {
        std::vector<pollfd> wanted;
        for (const Peer& peer : peers_)
            wanted.push_back({peer.ends.get(), POLLIN, 0});  // -1, which poll ignores: ourselves
        while (true) {
            if (::poll(wanted.data(), wanted.size(), -1) < 0) continue;
            const std::lock_guard<std::mutex> lock(mutex_);
            for (size_t i = 0; i < wanted.size(); i++)
                if (wanted[i].revents != 0 && !all_ended_) hear(i);
            if (all_ended_) return;
        }
    }
    void hear(size_t i) {
        Notice notice{};
        if (!receive_all(peers_[i].ends.get(), &notice, sizeof notice)) return miss(i);
        if (notice.news == News::abort) return end_all(notice.number);
        if (notice.news == News::give_up) return end_for(i, static_cast<size_t>(notice.number));
        if (notice.news == News::end) return note_end();
        all_ended_ = true;
        changed_.notify_all();
    }
    // Process 0: one more has come to its end.
    void note_end() {
        if (++ends_ < size_) return;
        all_ended_ = true;
        for (size_t r = 1; r < peers_.size(); r++) send_notice(peers_[r], News::all_ended);
        changed_.notify_all();
    }
    // Several may find the same; process 0 says it once.
    void end_for(size_t i, size_t length) {
        std::string line(std::min<size_t>(length, 4096), ' ');
        if (!receive_all(peers_[i].ends.get(), line.data(), line.size())) return miss(i);
        say_(of_process(static_cast<int>(i), names_[i], line));
        end_all(1);
    }
    // One is gone that should be there. Process 0 says so, or, if it is that, process 1.
    void miss(size_t i) {
        const std::string who = "process " + std::to_string(i) + " on " + names_[i];
        if (rank_ <= 1) say_(who + " has ended without a word (killed, or its machine is gone), so all do; " + kGoOn);
        end_all(1);
    }
    [[noreturn]] void end_all(int status) {
        for (const Peer& peer : peers_)
            if (peer.ends.is_open()) send_notice(peer, News::abort, status);
        ::_exit(status);
    }
};

}  // namespace

std::unique_ptr<LaunchedProcesses> join_over_sockets(const PlaceInRun& place,
                                                     const std::function<void(const std::string&)>& say) {
    return std::make_unique<SocketProcesses>(place, say);
}

}  // namespace lnfree
