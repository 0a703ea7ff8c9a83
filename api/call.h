/*
 * An API call. The table of routes says what a request is: an action, which goes to vm_apply(),
 * that knows what each state of the microVM allows; or a question, which the VM answers.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>

#include "api/answers.h"
#include "api/wire/http.h"
#include "vmm/machine/vm.h"

struct api_request {
    enum http_verb verb;
    const char *path;
    const char *body; /* NULL: none; body[body_length] is a NUL */
    size_t body_length;
};

/* Who waits for the answer to a request that goes on meanwhile. One at a time does. */
struct api_later {
    void (*on_answer)(struct api_later *l, struct api_answer *answer);
    struct vm_waiter waiter;
    bool is_diff;
    uint64_t start_us;
};

/* Carries a request out, logs it and its result, and fills *answer. Where that has no status, it
 * will be given to later->on_answer(), from the loop or vm_stop(). */
void api_serve(struct vm *vm, const struct api_request *request, struct api_later *later,
               struct api_answer *answer);
