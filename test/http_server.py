"""A model hub on 127.0.0.1 for test_download.cpp: GPT-2's files, made up, served as Hugging Face serves them.

    python3 test/http_server.py LOG

Prints its port, then answers until standard input ends. /CASE/openai-community/gpt2/resolve/main/FILE gives FILE its
checksum and size; model.safetensors is redirected to a storage under another host name (localhost), as on the real hub.
CASE says what goes wrong, and separates the tests' requests in LOG, whose lines are
METHOD PATH RANGE AUTHORIZATION ("-" for a header that is not there):

    broken      the storage hangs up half-way through the first answer
    no-ranges   as broken, and the storage cannot go on in the middle of a file
    bad-weights, bad-config   the published checksum is that of something else
    short       the published size of the weights is one byte too large
    busy        the storage answers its first request with 503
    absent      there is no such model
    (others)    nothing
"""

import hashlib
import http.server
import os
import sys
import threading

FILES = {
    "config.json": b'{"model_type": "gpt2"}\n',
    "vocab.json": b'{"a": 0}\n',
    "merges.txt": b"#version: 0.2\n",
    "tokenizer.json": b'{"version": "1.0"}\n',
    "model.safetensors": bytes(i * i % 251 for i in range(100_003)),
}


def git_blob(content):
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class Hub(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    lock = threading.Lock()
    seen = set()  # of (case, what went wrong): happens once
    log = None

    def log_message(self, *_):
        pass

    def first_time(self, *what):
        with self.lock:
            new = what not in self.seen
            self.seen.add(what)
            return new

    def answer(self, status, headers, body=b""):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if "Content-Length" not in headers:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def answer_with_file(self, content, headers, cut=False, ranges=True):
        """The content, or what is left of it from the beginning of the Range on; half of that if it is to be cut."""
        wanted = self.headers.get("Range")
        start = 0
        if wanted and ranges:
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
            if start >= len(content):
                return self.answer(416, {})
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        body = content[start:]
        if cut:
            headers["Content-Length"] = str(len(body))
            body = body[: len(body) // 2]
            self.close_connection = True
        return self.answer(206 if start else 200, headers, body)

    def do_GET(self):
        with self.lock:
            of = [self.headers.get(name, "-").replace(" ", "_") for name in ("Range", "Authorization")]
            print(self.command, self.path, *of, file=self.log, flush=True)
        case, _, rest = self.path[1:].partition("/")
        prefix, _, name = rest.rpartition("/")
        content = FILES.get(name)
        if content is None or case == "absent":
            return self.answer(404, {}, b"not here\n")
        if prefix == "storage":
            if case == "busy" and self.command == "GET" and self.first_time(case, "busy"):
                return self.answer(503, {}, b"later\n")
            breaks = self.command == "GET" and case in ("broken", "no-ranges")
            cut = breaks and self.first_time(case, "cut")
            return self.answer_with_file(content, {"ETag": '"not the SHA-256"'}, cut, case != "no-ranges")
        if prefix != "openai-community/gpt2/resolve/main":
            return self.answer(404, {}, b"not here\n")
        if name != "model.safetensors":
            wrong = b"?" if case == "bad-config" and name == "config.json" else b""
            return self.answer_with_file(content, {"ETag": f'W/"{git_blob(content + wrong)}"'})
        port = self.server.server_port
        wrong = b"?" if case == "bad-weights" else b""
        size = len(content) + (case == "short")
        headers = {
            "Location": f"http://localhost:{port}/{case}/storage/{name}",
            "X-Linked-Etag": f'"{hashlib.sha256(content + wrong).hexdigest()}"',
            "X-Linked-Size": str(size),
        }
        return self.answer(302, headers, b"Found elsewhere\n")

    do_HEAD = do_GET


def main():
    with open(sys.argv[1], "w", encoding="utf-8") as Hub.log:
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        print(server.server_port, flush=True)
        sys.stdin.read()
        os._exit(0)  # not waiting for connections that are still open


if __name__ == "__main__":
    main()
