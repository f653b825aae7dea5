"""A server on loopback that plays a language model, and misbehaves on request."""

import contextlib
import json
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

KEY = "sk-of-nobody-0123456789"


def answer(*queries, kind="need"):
    return json.dumps({"queries": [{"kind": kind, "query": query} for query in queries]})


def completion(content, ended="stop", **message):
    choice = {"message": {"role": "assistant", "content": content, **message}, "finish_reason": ended}
    return {"choices": [choice], "usage": {"prompt_tokens": 100, "completion_tokens": 20}}


def good(about):
    return 200, completion(answer(f"something {about}", f"{about} for two"))


class Server(ThreadingHTTPServer):
    """Replies by a script per product, a list of (status, body) or functions of the handler; then it answers well.

    A product is the first word of its title in lower case; `asked` counts its requests.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.script, self.asked, self.bodies, self.keys = {}, Counter(), [], []
        self.at_once = self.most_at_once = 0
        self.lock = threading.Lock()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def handle_error(self, request, client_address):
        pass  # clients that disconnect are part of the tests


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        server, body = self.server, json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        about = body["messages"][1]["content"].split("<product>\n")[1].split()[0].strip(".,").lower()
        with server.lock:
            server.asked[about] += 1
            server.bodies.append(body)
            server.keys.append(self.headers.get("Authorization"))
            server.at_once += 1
            server.most_at_once = max(server.most_at_once, server.at_once)
            script = server.script.get(about, server.script.get("*", []))
            step = script.pop(0) if script else good(about)
        reply = step(self, about) if callable(step) else step
        with server.lock:
            server.at_once -= 1
        if reply is not None:
            self.reply(*reply)

    def reply(self, status, content):
        data = content.encode() if isinstance(content, str) else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Retry-After-Ms", "1")  # so that the client does not wait
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


@contextlib.contextmanager
def running():
    """A server in a thread of its own."""
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
