// Everything that comes before a run's first step, in the order in which run() calls it. What fails here throws BadInput
// before anything is written.
#pragma once

#include "dev/run/session.h"

namespace lnfree {

// The model to start from and the settings that the flags and its size make; for pretrain a new one.
void load_start(Session& session);

// Takes up the newest checkpoint in --out, whose lock it takes first: BadInput, naming the holder, if that run still goes on.
void load_resume_point(Session& session);

// --data self: the model is to write the text that it learns from. Shards of it, as many tokens as the run reads and where
// there is no --val some to validate, PREFIX OUT/self; from then on they are the run's data. --out must be claimed. Of
// several processes the first writes, and all read.
bool writes_own_text(const Session& session);
void write_own_text(Session& session);

// Token ids within the vocabulary, the tokenizer that made the shards the model's own, enough of both splits.
void check_data(const Session& session);

// Before several processes share a run: that all have the same program, model, data and settings, and a micro-batch each.
// BadInput, naming the process and its machine, where they do not.
void require_same_run(const Session& session);

// Precision and engine options of the run come into force. BadInput for what this machine cannot do.
void configure_engine(const Session& session);

// What --lora and --norm-scale ask of the model, whose optimiser has not been prepared yet.
void choose_what_is_trained(const Session& session);

// Makes --out and takes its lock. Refuses a folder that holds anything, unless --force; then only files of an earlier run
// are replaced. RunFailure when the disk fails.
void claim_output_folder(Session& session);

}  // namespace lnfree
