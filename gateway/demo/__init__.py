"""The demo upstream: a small, faithful Ollama that echoes the prompt, one word a token.

`make demo` shows it, the tests run against it over real HTTP, and the chaos run asks it what it really produced. It is
Ollama in what a gateway can be fooled or hurt by: JSON keys bind without regard to case, a model has many names, errors
come before or after the first token, streams are NDJSON or SSE with Ollama's own framing and final counts. It is not a
language model: the answer is `Echo:` and the words of the last user message; `prompt_eval_count` is the number of words
in all messages (at least 1) and `eval_count` the number of word chunks sent.

    python -m gateway.demo --host 127.0.0.1 --port 0 [--unix PATH]     prints: listening on http://127.0.0.1:PORT

Controls
--------
Words of the last user message (or prompt, or last input) steer faults and timing, so that they work through any
gateway. They are prompt words as any other and count as such, but are not echoed. N is a whole number.

=================  ====================================================================================================
`!first=N`         wait N ms before the first token
`!delay=N`         wait N ms between tokens
`!tokens=N`        answer `w0 w1 …`, N tokens, in place of the echo
`!think=N`         think N tokens (`t0 t1 …`) before the answer; a request with `think` set thinks three
`!cached=N`        report N as `prompt_eval_cached_count` (native final object only)
`!error-before=S`  answer with status S (400 to 599) and Ollama's error shape, before any content; 503 is the full queue
`!error-after=N`   fail after N tokens: an error line, or what the dialect makes of one, under HTTP 200
`!die-after=N`     close the TCP connection after N tokens, in the middle of the body
`!hang-after=N`    send nothing more after N tokens, and keep the connection
`!overrun`         ignore num_predict, max_tokens and the like: send every token
`!nocount`         leave the counts out of the final object (zeros in the dialects that always have the field)
`!crlf`            end SSE lines with CR LF
`!split`           send every line in several TCP writes, cut at odd places (inside UTF-8 characters too)
`!merge`           send several lines in one write
`!gzip`            compress the answer, if the client accepts gzip
`!gzip-always`     compress it whoever asks, as a careless proxy before Ollama may
`!claim-br`        say that the answer is compressed with brotli, which it is not
`!claim-gzip`      the same of gzip
=================  ====================================================================================================

An answer that is not streamed obeys them too: it comes after all its delays, and a failure after N tokens is a status
500, since nothing was sent before. A request with `tools` whose last message is a user's with the word part `tool` in
it is answered with one call of the first tool (one token). Embeddings have no tokens: `…-after=0` is their only case.

What it saw
-----------
`GET /__demo/served[?since=INDEX]`  every generation served: who asked, what was produced, how it ended (`journal.py`)
`GET /__demo/requests`              the last 10000 requests of any kind, with headers and the start of the body
`POST /__demo/reset`                forget both
`PUT /__demo/models`                a JSON list of names: install these models and no others
`PUT /__demo/headers`               a JSON list of [name, value]: every answer from now on has these headers too
"""
