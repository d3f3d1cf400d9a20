#include "dev/run/processes_mpi.h"

#ifdef LNFREE_MPI

// The C interface alone.
#define OMPI_SKIP_MPICXX
#define MPICH_SKIP_MPICXX
#include <mpi.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <limits>
#include <utility>

#include "data/error.h"
#include "dev/cpu/machine.h"

namespace lnfree {

namespace {

void require(int code, const char* what) {
    if (code == MPI_SUCCESS) return;
    char text[MPI_MAX_ERROR_STRING] = "";
    int length = 0;
    MPI_Error_string(code, text, &length);
    throw RunFailure(std::string(what) + " between the processes of this run failed (" + text +
                     "): one of them has ended, or its machine cannot be reached any more");
}

// MPI counts in int.
int count_of(int64_t n) {
    if (n > std::numeric_limits<int>::max())
        throw RunFailure("a model of more than 2^31 parameters cannot be shared by several processes");
    return static_cast<int>(n);
}

std::vector<int> counts_of(const std::vector<int64_t>& counts) {
    std::vector<int> converted;
    for (const int64_t n : counts) converted.push_back(count_of(n));
    return converted;
}

std::vector<int> one_after_another(const std::vector<int64_t>& counts) {
    std::vector<int> places;
    int64_t next = 0;
    for (const int64_t n : counts) {
        places.push_back(count_of(next));
        next += n;
    }
    return places;
}

MPI_Datatype type_of(int64_t bytes) {
    return bytes == 8 ? MPI_UINT64_T : bytes == 4 ? MPI_UINT32_T : MPI_UINT8_T;
}

class MpiProcesses final : public LaunchedProcesses {
  public:
    explicit MpiProcesses(std::function<void(const std::string&)> say) : say_(std::move(say)) {
        MPI_Comm_rank(MPI_COMM_WORLD, &rank_);
        MPI_Comm_size(MPI_COMM_WORLD, &size_);
        // Ends are agreed on beside what else is going on.
        for (MPI_Comm* made : {&run_, &end_}) {
            MPI_Comm_dup(MPI_COMM_WORLD, made);
            MPI_Comm_set_errhandler(*made, MPI_ERRORS_RETURN);
        }
        MPI_Comm machine;
        MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, rank_, MPI_INFO_NULL, &machine);
        MPI_Comm_size(machine, &on_this_machine_);
        MPI_Comm_rank(machine, &place_on_machine_);
        MPI_Comm_free(&machine);
    }
    int rank() const override { return rank_; }
    int size() const override { return size_; }
    int on_this_machine() const override { return on_this_machine_; }
    int place_on_machine() const override { return place_on_machine_; }

    void all_gather(void* all, int64_t bytes, const std::vector<int64_t>& counts) override {
        const Stopwatch watch(*this);
        require(MPI_Allgatherv(MPI_IN_PLACE, 0, MPI_DATATYPE_NULL, all, counts_of(counts).data(),
                               one_after_another(counts).data(), type_of(bytes), run_),
                "gathering");
    }
    void broadcast(void* data, int64_t n) override {
        const Stopwatch watch(*this);
        require(MPI_Bcast(data, count_of(n), MPI_BYTE, 0, run_), "a broadcast");
    }
    void exchange(const real* flat, const std::vector<Range>& pieces, const std::vector<bool>& senders,
                  const std::vector<real*>& received) override {
        const Stopwatch watch(*this);
        std::vector<int> send_counts, send_places, counts, places;
        const int64_t mine = pieces[static_cast<size_t>(rank_)].size();
        for (size_t r = 0; r < pieces.size(); r++) {
            send_counts.push_back(flat == nullptr ? 0 : count_of(pieces[r].size()));
            send_places.push_back(flat == nullptr ? 0 : count_of(pieces[r].first));
            counts.push_back(senders[r] ? count_of(mine) : 0);
            places.push_back(count_of(received[r] - received[0]));
        }
        MPI_Datatype type = type_of(sizeof(real));
        require(MPI_Alltoallv(flat, send_counts.data(), send_places.data(), type, received[0], counts.data(),
                              places.data(), type, run_),
                "summing gradients");
    }
    void collect(real* all, const real* mine, const std::vector<int64_t>& counts) override {
        const Stopwatch watch(*this);
        MPI_Datatype type = type_of(sizeof(real));
        const void* const from =
            rank_ == 0 && mine == all ? MPI_IN_PLACE : mine;  // an empty part may be null, as `all` is
        require(MPI_Gatherv(from, count_of(counts[static_cast<size_t>(rank_)]), type, all, counts_of(counts).data(),
                            one_after_another(counts).data(), type, 0, run_),
                "collecting a checkpoint");
    }

    std::string machine() const override {
        char name[MPI_MAX_PROCESSOR_NAME] = "";
        int length = 0;
        MPI_Get_processor_name(name, &length);
        return name;
    }
    bool all_end(double seconds) override {
        MPI_Request request;
        if (MPI_Ibarrier(end_, &request) != MPI_SUCCESS) return false;
        const double deadline = seconds_now() + seconds;
        int done = 0;
        while (MPI_Test(&request, &done, MPI_STATUS_IGNORE) == MPI_SUCCESS && done == 0) {
            if (seconds >= 0 && seconds_now() > deadline) return false;
            ::usleep(1000);
        }
        return done != 0;
    }
    void finalize() override { MPI_Finalize(); }
    void abort(int status) override { MPI_Abort(MPI_COMM_WORLD, status); }
    // MPI is the main thread's. Its launcher ends the others when one ends without a farewell.
    void give_up(const std::string& line) override {
        say_(of_process(rank_, machine(), line));
        ::_exit(1);
    }

  private:
    const std::function<void(const std::string&)> say_;
    int rank_ = 0, size_ = 1, on_this_machine_ = 1, place_on_machine_ = 0;
    MPI_Comm run_ = MPI_COMM_NULL, end_ = MPI_COMM_NULL;
};

}  // namespace

bool built_with_mpi() {
    return true;
}

std::unique_ptr<LaunchedProcesses> join_over_mpi(const std::function<void(const std::string&)>& say) {
    int provided = 0, size = 1;
    MPI_Init_thread(nullptr, nullptr, MPI_THREAD_FUNNELED, &provided);
    MPI_Comm_size(MPI_COMM_WORLD, &size);
    if (size > 1) return std::make_unique<MpiProcesses>(say);
    MPI_Finalize();
    return nullptr;
}

}  // namespace lnfree

#else

namespace lnfree {

bool built_with_mpi() {
    return false;
}

std::unique_ptr<LaunchedProcesses> join_over_mpi(const std::function<void(const std::string&)>&) {
    return nullptr;
}

}  // namespace lnfree

#endif
