/*
 * The API behind its framing: any requests to a VM that is not started. The input is a list of
 * requests, each ended by a NUL: a letter for the method, the path, a space, the body.
 */
#include "api/call.h"

#include "tests/fuzz/support/scratch.h"

static enum http_verb verb_of(char letter)
{
    switch (letter) {
    case 'G': return HTTP_VERB_GET;
    case 'A': return HTTP_VERB_PATCH;
    case 'D': return HTTP_VERB_DELETE;
    default: return HTTP_VERB_PUT;
    }
}

static void serve(struct vm *vm, const struct api_request *r)
{
    struct api_later later = { 0 };
    struct api_answer answer;

    if (strlen(r->path) >= HTTP_LINE_MAX)
        return; /* the framing does not let it through */
    api_serve(vm, r, &later, &answer);
    MUST(answer.status == 200 || answer.status == 204 || answer.status == 400 ||
         answer.status == 413);
    MUST((answer.status == 204) == (answer.body.length == 0));
    json_writer_fini(&answer.body);
}

/* text ends with a NUL. The body gets a block of its own, so that a read behind it is seen. */
static void serve_text(struct vm *vm, char *text)
{
    struct api_request r = { .verb = verb_of(text[0]), .path = text + 1 };
    char *space = strchr(text, ' '), *body = NULL;

    if (space) {
        *space = '\0';
        body = strdup(space + 1);
        MUST(body);
        r.body = body;
        r.body_length = strlen(body);
        confine(body, r.body_length);
    }
    serve(vm, &r);
    free(body);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct input in = { data, size };
    struct scratch s;
    size_t length;
    char *text = take_text(&in, &length);

    scratch_enter(&s);
    for (size_t at = 0, n; at < length; at += n + 1) {
        n = strlen(text + at);
        if (n > 0)
            serve_text(s.vm, text + at);
    }
    scratch_leave(&s);
    free(text);
    return 0;
}
