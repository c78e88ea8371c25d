"""Let other programs talk to a model: `tinygpt serve`, OpenAI's HTTP interface.

A request passes these files from top to bottom, and its text comes back the same way. Nothing from `engine` on knows
about HTTP, and nothing above it touches the model. Two threads: uvicorn's event loop, which reads requests and writes
answers, and the engine's, which owns the model. They meet in `Engine.submit` and in the callback that receives each
token.

| file | contents |
|---|---|
| `server` | the socket, uvicorn, and a shutdown that finishes what is running |
| `protocol` | a client's connection, closed if it is held without being used |
| `guard` | what every request must pass: Host, Origin, key |
| `app` | the endpoints, as an ASGI application of starlette; streams; clients that go away |
| `web`, `page/` | the page at `/`: its files, and the headers that allow nothing else in it |
| `bodies`, `fields` | what a body asks for: prompts as ids, options; each field checked |
| `penalties` | logit_bias, frequency_penalty, presence_penalty |
| `answers` | texts in OpenAI's form, whole or in chunks; log-probabilities |
| `errors` | errors in OpenAI's form |
| `metrics`, `statistics` | the counters, in Prometheus's form |
| `post` | from the engine's thread to the event loop |
| `engine` | the thread that writes many texts at once; the queue before it |
| `tickets` | what was submitted to it, and why a submission is refused |
| `reading` | the prompts that are being read |
| `prefixes` | keys and values of prompts' beginnings, for prompts that share one |
| `samples` | one text: what chooses its next token and what ends it |

starlette and uvicorn (extra `serve`) are imported by `app`, `guard`, `protocol`, `web` and `server` alone, when a
server starts.
"""
