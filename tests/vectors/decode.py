#!/usr/bin/python3
"""Recomputes every golden vector of escp's protocol from its inputs.

A second implementation on purpose: it shares no code with the Rust crates, takes AES-GCM, HKDF and HMAC from
the `cryptography` package and zstd from `zstandard`, and parses every layout of docs/PROTOCOL.md itself. It
ends with a line that says "all vectors agree", or with the first difference and status 1.
"""

import hashlib
import hmac
import io
import ipaddress
import json
import pathlib
import struct
import sys

import zstandard
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

HERE = pathlib.Path(__file__).resolve().parent
RECORDS_PER_EPOCH = 1 << 15
FLOWS = {"near to far": 0, "far to near": 1}
agreed = 0


def same(what, got, due):
    global agreed
    if got != due:
        sys.exit(f"{what}: computed {got!r}, the vector has {due!r}")
    agreed += 1


def load(name):
    return json.loads((HERE / name).read_text(encoding="utf-8"))


def expand(secret, info, length):
    return HKDFExpand(algorithm=hashes.SHA256(), length=length, info=info).derive(secret)


# ---- key schedule ------------------------------------------------------------------------------------------


def master_secret(near_hello, far_hello, near_random, far_random):
    salt = hashlib.sha256(near_hello + far_hello).digest()
    return hmac.new(salt, near_random + far_random, hashlib.sha256).digest()


def stream_secret(master, session, stream):
    info = b"escp2 stream" + session + struct.pack(">HB", stream["stream"], FLOWS[stream["flow"]])
    info += bytes.fromhex(stream["nonce"]) + bytes.fromhex(stream["answer_nonce"])
    return expand(master, info, 32)


def epochs(secret):
    """Key and IV base of epoch 0, 1, 2 and so on, with the secret they come from."""
    while True:
        yield secret, expand(secret, b"escp2 key", 16), expand(secret, b"escp2 iv", 12)
        secret = expand(secret, b"escp2 next", 32)


def hello(frame):
    length, magic, lowest, highest, _features, session, random, _machine = struct.unpack(
        ">I8sHHQ16s32s16s", frame
    )
    same("hello", (length, magic, lowest, highest), (84, b"escp-ctl", 2, 2))
    return session, random


def check_schedule(vectors):
    near, far = bytes.fromhex(vectors["near_hello"]), bytes.fromhex(vectors["far_hello"])
    session, near_random = hello(near)
    far_session, far_random = hello(far)
    same("session", (session, far_session), (bytes.fromhex(vectors["session"]),) * 2)
    same("randoms", (near_random.hex(), far_random.hex()), (vectors["near_random"], vectors["far_random"]))
    master = master_secret(near, far, near_random, far_random)
    same("master", master.hex(), vectors["master"])
    route = expand(master, b"escp2 route" + session, 32)
    same("route key", route.hex(), vectors["route_key"])
    for stream in vectors["streams"]:
        secret = stream_secret(master, session, stream)
        same("stream secret", secret.hex(), stream["secret"])
        for due, (secret, key, iv_base) in zip(stream["epochs"], epochs(secret)):
            got = [secret.hex(), key.hex(), iv_base.hex()]
            same("epoch", got, [due["secret"], due["key"], due["iv_base"]])
    for packets in vectors["first_packets"]:
        nonce, answer_nonce = bytes.fromhex(packets["nonce"]), bytes.fromhex(packets["answer_nonce"])
        proven = b"ESCP" + struct.pack(">HH", 2, packets["stream"]) + session + nonce
        packet = proven + hmac.new(route, proven, hashlib.sha256).digest()[:16] + bytes(8)
        same("first packet", packet.hex(), packets["packet"])
        same("proof", packet[40:56].hex(), packets["proof"])
        proof = hmac.new(route, packet + answer_nonce, hashlib.sha256).digest()[:16]
        same("answer", (answer_nonce + proof).hex(), packets["answer"])
        same("answer's proof", proof.hex(), packets["answer_proof"])
    return session, master


# ---- records -----------------------------------------------------------------------------------------------


def unsealer(master, session, stream):
    """A function that opens the stream's records, in order, with gaps."""
    schedule = epochs(stream_secret(master, session, stream))
    state = {"epoch": -1}

    def open_record(sealed):
        (iv,) = struct.unpack(">Q", sealed[:8])
        kind, length, sequence = iv >> 62, iv >> 38 & (1 << 24) - 1, iv & (1 << 38) - 1
        same("record length", len(sealed), 8 + length + 16)
        while state["epoch"] < sequence // RECORDS_PER_EPOCH:
            _, state["key"], state["base"] = next(schedule)
            state["epoch"] += 1
        mask = bytes(4) + sealed[:8]
        nonce = bytes(a ^ b for a, b in zip(state["base"], mask))
        return kind, sequence, AESGCM(state["key"]).decrypt(nonce, sealed[8:], sealed[:8])

    return open_record


def crc64_nvme(data):
    crc = 0xFFFFFFFFFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x9A6C9329AC4BC9B5 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFFFFFFFFFF


def expanded(frame, length):
    """The zstd frame's content, never more than `length` bytes of it."""
    with zstandard.ZstdDecompressor().stream_reader(io.BytesIO(frame)) as reader:
        plain = reader.read(length + 1)
    same("expanded length", len(plain), length)
    return plain


def list_hash(files):
    value = 0
    for number, size, check in files:
        digest = hashlib.sha256(struct.pack(">QQQ", number, size, check)).digest()
        value ^= int.from_bytes(digest, "big")
    return value.to_bytes(32, "big").hex()


def metadata(payload, due):
    kind, body = payload[0], payload[1:]
    if kind & 0x80:
        kind, body = kind & 0x7F, expanded(body[4:], struct.unpack(">I", body[:4])[0])
        same("only what is over 160 bytes is compressed", len(body) > 160, True)
    if kind == 0x01:
        stream, records = struct.unpack(">HQ", body)
        return {"ack": {"stream": stream, "records": records}}
    if kind == 0x02:
        return "keepalive" if not body else None
    if kind == 0x03:
        return {"close": {"records": struct.unpack(">Q", body)[0]}}
    if kind == 0x04:
        files, digest = struct.unpack(">Q32s", body)
        items = due["end"]["list"]
        same("list", (files, digest.hex()), (len(items), list_hash(items)))
        return {"end": {"files": files, "list_hash": digest.hex(), "list": items}}
    if kind == 0x05:
        return {"abort": {"status": body[0], "reason": body[1:].decode("utf-8")}}
    if kind == 0x40:
        return {"agent": Postcard(body).whole(AGENT_MESSAGE)}
    sys.exit(f"unknown message type {kind:#x}")


def block(payload, _due):
    names = ("file", "offset", "plain_len", "flags", "check")
    header = dict(zip(names, struct.unpack(">QQIIQ", payload[:32])))
    flags, data = header["flags"], payload[32:]
    plain = expanded(data, header["plain_len"]) if flags & 1 else data
    same("plain length", len(plain), header["plain_len"])
    if flags & 4:
        count, start = header["file"], header["file"] * 32
        for index in range(count):
            small = struct.unpack(">QQIIQ", plain[index * 32 : index * 32 + 32])
            same("packed header", (small[1], small[3]), (0, 0))
            same("packed check", crc64_nvme(plain[start : start + small[2]]), small[4])
            start += small[2]
        same("packed length", start, len(plain))
    elif not flags & 2:
        same("check", crc64_nvme(plain), header["check"])
    return {**header, "plain": plain.hex()}


def check_records(vectors, session, master):
    same("session", (vectors["session"], vectors["master"]), (session.hex(), master.hex()))
    for stream in vectors["streams"]:
        open_record = unsealer(master, session, stream)
        for record in stream["records"]:
            sealed = bytes.fromhex(record["sealed"])
            kind, sequence, payload = open_record(sealed)
            same("sequence", sequence, record["sequence"])
            same("IV", sealed[:8].hex(), record["iv"])
            same("payload", payload.hex(), record["payload"])
            meaning = (metadata, block)[kind](payload, record["meaning"])
            same(record["name"], meaning, record["meaning"])
            if "close" in meaning:
                same("records before close", meaning["close"]["records"], sequence)


# ---- postcard ----------------------------------------------------------------------------------------------


class Postcard:
    """A reader of postcard's wire format, told what to expect."""

    def __init__(self, data):
        self.data = data
        self.at = 0

    def whole(self, schema):
        value = schema(self)
        same("bytes after the end", len(self.data) - self.at, 0)
        return value

    def take(self, count):
        piece = self.data[self.at : self.at + count]
        same("bytes left", len(piece), count)
        self.at += count
        return piece

    def unsigned(self):
        value = shift = 0
        while True:
            byte = self.take(1)[0]
            value |= (byte & 0x7F) << shift
            shift += 7
            if not byte & 0x80:
                return value

    def signed(self):
        value = self.unsigned()
        return value >> 1 ^ -(value & 1)

    def octet(self):
        return self.take(1)[0]

    def boolean(self):
        return {0: False, 1: True}[self.octet()]

    def text(self):
        return self.take(self.unsigned()).decode("utf-8")

    def bytes(self):
        return list(self.take(self.unsigned()))


def sequence(item):
    return lambda p: [item(p) for _ in range(p.unsigned())]


def pair(first, second):
    return lambda p: [first(p), second(p)]


def option(item):
    return lambda p: item(p) if p.boolean() else None


def struct_of(**fields):
    return lambda p: {name: field(p) for name, field in fields.items()}


def enum(*variants):
    """Variants in order: a name alone, or a name and its content."""

    def read(p):
        variant = variants[p.unsigned()]
        return variant if isinstance(variant, str) else {variant[0]: variant[1](p)}

    return read


def address(p):
    length = (4, 16)[p.unsigned()]
    return str(ipaddress.ip_address(bytes(p.take(length))))


P = Postcard
TIMESTAMP = struct_of(seconds=P.signed, nanoseconds=P.unsigned)
ATTRIBUTES = struct_of(mode=P.unsigned, mtime=TIMESTAMP, atime=TIMESTAMP)
ENTRY_KIND = enum(
    ("File", struct_of(size=P.unsigned, sparse=P.boolean, attributes=ATTRIBUTES)),
    ("Directory", struct_of(attributes=ATTRIBUTES)),
    "DirectoryEnd",
)
ENTRY = struct_of(number=P.unsigned, parent=P.unsigned, name=P.bytes, kind=ENTRY_KIND)
FAILURE = struct_of(number=P.unsigned, text=P.text, integrity=P.boolean)
TRANSFER = enum(
    ("Upload", struct_of(target=P.bytes, directory_required=P.boolean)),
    ("Download", struct_of(sources=sequence(P.bytes))),
)
REQUEST = struct_of(
    transfer=TRANSFER,
    recursive=P.boolean,
    preserve=P.boolean,
    inplace=P.boolean,
    durable=P.boolean,
    direct=P.boolean,
    checksum=P.boolean,
    dummy=P.boolean,
)
AGENT_MESSAGE = enum(
    ("Request", REQUEST),
    ("Accept", struct_of(sources=P.unsigned)),
    ("Refuse", struct_of(status=P.octet, text=P.text)),
    ("Offer", sequence(ENTRY)),
    ("Scanned", struct_of(files=P.unsigned, bytes=P.unsigned, complete=P.boolean)),
    ("SourceFailed", struct_of(path=P.bytes, text=P.text)),
    ("Credit", struct_of(entries=P.unsigned)),
    ("Ready", sequence(P.unsigned)),
    ("Rejected", sequence(FAILURE)),
    ("Digests", sequence(struct_of(number=P.unsigned, outcome=enum(("Ok", P.unsigned), ("Err", P.text))))),
    ("Done", sequence(struct_of(number=P.unsigned, outcome=enum(("Ok", P.unsigned), ("Err", FAILURE))))),
    "NoMore",
    ("Sources", sequence(P.bytes)),
)
STREAMS = struct_of(count=P.unsigned, depth=P.unsigned)
JOB = struct_of(
    far_sends=P.boolean,
    engine=P.text,
    streams=STREAMS,
    streams_on_one_machine=STREAMS,
    block_size=P.unsigned,
    compress=option(P.signed),
    checksum=P.boolean,
    durable=P.boolean,
    rate_limit=option(P.unsigned),
    congestion=option(P.text),
    ports=option(pair(P.unsigned, P.unsigned)),
    verbose=P.octet,
)
LISTENING = struct_of(
    addresses=sequence(address),
    ports=sequence(P.unsigned),
    engine=P.text,
    daemon=P.boolean,
    notes=sequence(P.text),
)
CONTROL_MESSAGE = enum(
    ("Job", JOB), ("Listening", LISTENING), ("Failed", struct_of(status=P.octet, text=P.text)), "Bye"
)


def check_messages(vectors):
    for control in vectors["control"]:
        frame = bytes.fromhex(control["frame"])
        same("frame length", struct.unpack(">I", frame[:4])[0], len(frame) - 4)
        same("control message", Postcard(frame[4:]).whole(CONTROL_MESSAGE), control["meaning"])
    for agent in vectors["agent"]:
        meaning = Postcard(bytes.fromhex(agent["bytes"])).whole(AGENT_MESSAGE)
        same(agent["name"], meaning, agent["meaning"])


def main():
    # The check value of the CRC catalogue for CRC-64/NVME.
    same("CRC-64/NVME of 123456789", crc64_nvme(b"123456789"), 0xAE8B14860A799888)
    session, master = check_schedule(load("schedule.json"))
    check_records(load("records.json"), session, master)
    check_messages(load("messages.json"))
    print(f"{agreed} values of the vectors agree; all vectors agree")


if __name__ == "__main__":
    main()
