"""Requests to the metadata service, and the answers of a real Firecracker (mmds_requests.txt), read
for the tests of both kinds of guest.

What is ours and better stands there instead: what says [close] ends the connection, and a request
that is too long gets an answer. Of two headers for one thing Firecracker takes any.
"""

import json
import pathlib
import re

STORE = {
    "latest": {"meta-data": {"ami-id": "ami-12345678", "hostname": "h", "nested": {"k": "v"}},
               "user-data": "#!/bin/sh\necho hi\n"},
    "num": 12, "yes": True, "nul": None, "arr": ["one", 2, {"x": "y"}], "empty": "", "eobj": {},
    "multi": "a\nb\n", "utf": "ü \"q\" \x01", "a/b": "slash", "a~b": "tilde", "a b": "blank",
    "": {"x": "emptykey"}, "d": "data", "big": "b" * 20000,
}
NO_TOKEN = ("No MMDS token provided. Use `X-metadata-token` or `X-aws-ec2-metadata-token` header to"
            " specify the session token.")
TOKEN_CHARACTERS = 48


def unescape(text, token=b""):
    """\\r, \\n, \\t, \\xNN and \\\\ as in C; \\AN and \\BN are so many letters, \\T a token, \\N and \\S
    what stands above."""
    def value(m):
        code = m.group(1)
        if code in "rnt\\":
            return {"r": b"\r", "n": b"\n", "t": b"\t", "\\": b"\\"}[code]
        if code[0] == "x":
            return bytes([int(code[1:], 16)])
        if code[0] in "AB":
            return code[0].lower().encode() * int(code[1:])
        if code == "S":
            return json.dumps(STORE, ensure_ascii=False, sort_keys=True,
                              separators=(",", ":")).encode()
        return {"T": token, "N": NO_TOKEN.encode()}[code]
    out, at = b"", 0
    for m in re.finditer(r"\\(x[0-9a-f]{2}|[AB]\d+|[rntTNS\\])", text):
        out += text[at:m.start()].encode() + value(m)
        at = m.end()
    return out + text[at:].encode()


class Answer:
    """An expected one: [1.0] STATUS [HEADER]... text|json BODY [close]"""

    def __init__(self, line):
        m = re.fullmatch(r"(1\.0 )?(\d+) ((?:\[[^\]]*\] )*)(text|json) ?(.*?)( ?\[close\])?", line)
        self.closes = bool(m.group(6))
        self.gives_token = m.group(5) == "\\T"
        self.body = m.group(5)
        self.lines = [f"HTTP/{(m.group(1) or '1.1').strip()} {m.group(2)} ",
                      "Server: Firecracker API",
                      "Connection: " + ("close" if self.closes else "keep-alive"),
                      *re.findall(r"\[([^\]]*)\]", m.group(3)),
                      "Content-Type: " + ("text/plain" if m.group(4) == "text" else
                                          "application/json")]

    def bytes(self, token):
        body = unescape(self.body, token)
        return "\r\n".join([*self.lines, f"Content-Length: {len(body)}", "", ""]).encode() + body

    def token_of(self, got):
        """A token that was given, which nobody can foretell."""
        return got[-TOKEN_CHARACTERS:] if self.gives_token else b""


class Exchange:
    def __init__(self, lines, version):
        self.name = lines[0].removeprefix("# ")
        self.request = lines[1].removeprefix("> ")
        self.answers = [Answer(line[2:]) for line in lines[2:] if line[0] in ("<", str(version))]
        assert self.answers, self.name


def exchanges(version):
    text = pathlib.Path(__file__).with_suffix(".txt").read_text(encoding="ascii")
    return [Exchange(part.splitlines(), version) for part in text.strip("\n").split("\n\n")]
