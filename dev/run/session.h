// A run that is going on: what its parts share. start.h fills it, loop.h carries it on, run.cpp ends it.
#pragma once

#include <cstdint>
#include <cstdio>
#include <future>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "data/checkpoints.h"
#include "data/companions.h"
#include "data/shards.h"
#include "data/tokenizer.h"
#include "dev/engine.h"
#include "dev/run/log.h"
#include "dev/run/run.h"
#include "dev/run/state.h"

namespace lnfree {

struct Session {
    RunRequest request;
    FILE* screen;                      // progress: standard error if standard output is for JSON
    std::unique_ptr<FolderLock> lock;  // on --out, from before the first thing is written there
    std::unique_ptr<Engine> model;
    std::unique_ptr<Engine> teacher;       // null unless --distill asks for one
    std::string teacher_fingerprint;       // 16 hexadecimal digits; of a run that goes on, as it was
    std::unique_ptr<Tokenizer> tokenizer;  // null if the model has none
    Companions companions;                 // what else came with it
    std::unique_ptr<TokenShards> train, val;
    RunState state;
    std::string based_on;  // lnfree.json of the model that the run started from, as text; empty: none
    RunLog log;
    // Of the first and of the latest validation of this process, one mean per sequence: what intervals are made of.
    struct Validation {
        std::vector<double> losses, kls, agreements;  // the last two only with a teacher
    } first_validation, last_validation;
    int64_t first_step = 0;  // of this process
    double started = 0;      // clock at that step
    // The last checkpoint on its way to the disk, while an engine with copies of its own goes on. Last, so that it is waited
    // for before what it reads is gone.
    std::future<void> writing;

    explicit Session(RunRequest r) : request(std::move(r)), screen(request.json_output ? stderr : stdout) {}

    RunSettings& options() { return request.settings; }
    const RunSettings& options() const { return request.settings; }
    const Settings& settings() const { return state.settings; }
};

}  // namespace lnfree
