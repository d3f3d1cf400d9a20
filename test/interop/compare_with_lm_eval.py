#!/usr/bin/env python3
"""Holds `analyze benchmarks` against lm-evaluation-harness, item by item, on the same model folder.

    pip install "lm_eval[hf]" torch transformers        (tried with lm_eval 0.4.13)
    test/interop/compare_with_lm_eval.py MODEL EVALS [--program ./train_gpt2_lnfree] [--limit 200] [--tasks piqa ...]

EVALS holds the files that dev/analysis/benchmarks.h reads; the Hub is not needed. The harness runs its own tasks, of which only the place
of the data is changed. It reads the items in the fields of the original data sets; the program reads them twice, in these fields and as
they lie in EVALS. HellaSwag without its activity labels is another prompt: there the harness runs on contexts that are prepared by its
own function.

One line per task; exit 0 if every choice is the same and every log-likelihood within --tolerance, else 1. Skips, with exit 0, without lm_eval.
"""

import argparse
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile

os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
try:
    import lm_eval
    import lm_eval.tasks
    from lm_eval.tasks.hellaswag.utils import preprocess
except ImportError as missing:
    print(f"skipped: {missing}; pip install 'lm_eval[hf]' torch transformers")
    sys.exit(0)

LABEL = "Made-up label"
# name here: the harness's file, and the split that it takes items from
TASKS = {
    "hellaswag": ("hellaswag/hellaswag.yaml", "validation"),
    "piqa": ("piqa/piqa.yaml", "validation"),
    "winogrande": ("winogrande/default.yaml", "validation"),
    "boolq": ("super_glue/boolq/default.yaml", "validation"),
    "lambada": ("lambada/lambada_openai.yaml", "test"),
}


def items(evals, task, limit):
    (path,) = sorted(evals.glob(f"{task}*.jsonl"))
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()[:limit]]
    labels = path.with_name(path.stem + "-labels.lst")
    if labels.exists():
        for item, label in zip(lines, labels.read_text().split()):
            item["label"] = int(label)
    return lines


def hellaswag_parts(question):
    """ctx_a and ctx_b: an unfinished sentence at the end, which begins with a small letter, is ctx_b."""
    last = re.search(r"(?<=[.!?]) (?=[a-z])[^.!?]*$", question)
    return (question[: last.start()], last[0][1:]) if last else (question, "")


def original(task, item):
    """An item in the fields of the original data set."""
    if task == "hellaswag" and "question" in item:
        ctx_a, ctx_b = hellaswag_parts(item["question"])
        endings = [item["choices"][letter] for letter in "ABCD"]
        fields = {"activity_label": LABEL, "ctx_a": ctx_a, "ctx_b": ctx_b, "endings": endings}
        return {**fields, "label": str("ABCD".index(item["answer"]))}
    if task == "winogrande" and "context_options" in item:
        # What the two contexts begin with in common, up to a space, stands in front of the gap.
        begin = os.path.commonprefix(item["context_options"]).rpartition(" ")[0]
        options = [context[len(begin) + 1 :] for context in item["context_options"]]
        sentence = f"{begin} _ {item['continuation']}"
        return {"sentence": sentence, "option1": options[0], "option2": options[1], "answer": str(item["gold"] + 1)}
    if task == "boolq" and "query" in item:
        passage, question = item["query"].removeprefix("Passage: ").split("\nQuestion: ")
        return {"passage": passage, "question": question.removesuffix("?"), "label": item["gold"]}
    if task == "lambada" and "context" in item:
        return {"text": f"{item['context']} {item['continuation']}"}
    return item


def prepared(item):
    """HellaSwag without an activity label, as the harness prepares the rest of it."""
    ctx_a, ctx_b = hellaswag_parts(item["question"])
    context = f"{ctx_a} {ctx_b.capitalize()}" if ctx_b else ctx_a
    choices = [preprocess(item["choices"][letter]) for letter in "ABCD"]
    return {"query": preprocess(context), "choices": choices, "label": "ABCD".index(item["answer"])}


def write_jsonl(path, lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def harness_task(folder, name, task, data, extra=""):
    """A task file of ours that includes the harness's and points it to `data`."""
    file, split = TASKS[task]
    base = pathlib.Path(lm_eval.tasks.__file__).parent / file
    path = folder / f"{name}.yaml"
    path.write_text(
        f"include: {base}\ntask: lnfree_{name}\ndataset_path: json\ndataset_name: null\ntraining_split: null\n"
        f"dataset_kwargs: {{data_files: {{{split}: {data}}}}}\n{extra}"
    )
    return str(path)


def run_program(args, evals, folder):
    choices = folder / "choices.jsonl"
    command = [args.program, "analyze", "benchmarks", "--json", "--model", args.model, "--evals", evals]
    command += ["--tasks", *args.tasks, "--limit", str(args.limit), "--choices", choices, "--force"]
    done = subprocess.run(command, check=False, stdout=subprocess.PIPE)
    if done.returncode != 0:
        sys.exit(f"{args.program} ended with status {done.returncode}")
    answers = {}
    for line in choices.read_text().splitlines():
        answer = json.loads(line)
        answers.setdefault(answer["task"], []).append(answer)
    report = json.loads(done.stdout)
    report = report["models"][0] if "models" in report else report
    return {result["task"]: (result, answers[result["task"]]) for result in report["tasks"]}


def best(values):
    return values.index(max(values))


def compare(name, task, ours, harness, tolerance):
    """Prints one line; True if all is the same."""
    result, answers = ours
    samples = sorted(harness["samples"][f"lnfree_{name}"], key=lambda sample: sample["doc_id"])
    metrics = harness["results"][f"lnfree_{name}"]
    wrong, largest, closest = [], 0.0, float("inf")
    if len(samples) != len(answers):
        wrong.append(f"{len(answers)} items, the harness has {len(samples)}")
    for sample, answer in zip(samples, answers):
        theirs = [float(response[0]) for response in sample["filtered_resps"]]
        mine = answer["loglikelihoods"]
        largest = max(largest, *(abs(a - b) for a, b in zip(mine, theirs)))
        if task == "lambada":
            same = answer["greedy"] == bool(sample["acc"])
        else:
            second, first = sorted(theirs)[-2:]
            closest = min(closest, first - second)
            same = answer["choice"] == best(theirs) and (answer["choice"] == answer["gold"]) == bool(sample["acc"])
        if "choice_norm" in answer:
            same = same and (answer["choice_norm"] == answer["gold"]) == bool(sample["acc_norm"])
        if not same:
            wrong.append(f"item {answer['item']}: {answer}, the harness {theirs}")
    for metric in ("acc", "acc_stderr", "acc_norm", "acc_norm_stderr", "perplexity"):
        key = f"{metric},none"
        if (metric in result) != (key in metrics):
            wrong.append(f"{metric} is given by one of the two only")
        elif metric in result:
            limit = 1e-9 if metric.startswith("acc") else 1e-4 * metrics[key]
            if abs(result[metric] - metrics[key]) > limit:
                wrong.append(f"{metric} {result[metric]}, the harness {metrics[key]}")
    if largest > tolerance:
        wrong.append(f"a log-likelihood differs by {largest:.2e}")
    extra = f", closest decision {closest:.1e}"
    if task == "lambada":  # the harness draws this one
        extra = f", perplexity_stderr {result['perplexity_stderr']:.4g} against {metrics['perplexity_stderr,none']:.4g}"
    print(
        f"{'FAILED' if wrong else 'ok'}  {name}: {len(answers)} items, acc {result['acc']:.4f}, largest difference "
        f"{largest:.1e} nats{extra}"
    )
    for line in wrong[:5]:
        print(f"        {line}")
    return not wrong


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=pathlib.Path)
    parser.add_argument("evals", type=pathlib.Path)
    parser.add_argument("--program", default="./train_gpt2_lnfree")
    parser.add_argument("--limit", type=int, default=200)
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), default=list(TASKS))
    parser.add_argument("--tolerance", type=float, default=1e-3, help="nats [1e-3]")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        converted = folder / "original"
        converted.mkdir()
        specs = []
        for task in args.tasks:
            lines = [original(task, item) for item in items(args.evals, task, args.limit)]
            data = write_jsonl(converted / f"{task}.jsonl", lines)
            specs.append(harness_task(folder, task, task, data))
        unlabelled = "hellaswag" in args.tasks and "question" in items(args.evals, "hellaswag", 1)[0]
        if unlabelled:
            lines = [prepared(item) for item in items(args.evals, "hellaswag", args.limit)]
            data = write_jsonl(folder / "unlabelled.jsonl", lines)
            specs.append(harness_task(folder, "hellaswag_unlabelled", "hellaswag", data, "process_docs: null\n"))
        in_original_fields = run_program(args, converted, folder)
        as_they_lie = run_program(args, args.evals, folder)
        harness = lm_eval.simple_evaluate(
            model="hf",
            model_args={"pretrained": str(args.model), "dtype": "float32"},
            tasks=specs,
            device="cpu",
            batch_size=8,
            log_samples=True,
            bootstrap_iters=1000,
        )
    print(f"lm_eval {lm_eval.__version__}" if hasattr(lm_eval, "__version__") else "lm_eval")
    good = [compare(task, task, in_original_fields[task], harness, args.tolerance) for task in args.tasks]
    print("as the files lie in EVALS:")
    for task in args.tasks:
        name = "hellaswag_unlabelled" if unlabelled and task == "hellaswag" else task
        good.append(compare(name, task, as_they_lie[task], harness, args.tolerance))
    sys.exit(0 if all(good) else 1)


if __name__ == "__main__":
    main()
