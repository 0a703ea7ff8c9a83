/*
 * What each method and path does: one table, a row and a function for each. Routes turn a request
 * into an action for vm_apply(), which knows what each state of the microVM allows, and the VM's
 * configuration into answers.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>

#include "api/wire/http.h"
#include "api/wire/json_writer.h"
#include "vmm/machine/vm.h"

struct api_request {
    enum http_verb verb;
    const char *path;
    const char *body; /* NULL: none; body[body_length] is a NUL */
    size_t body_length;
};

struct api_answer {
    unsigned status;
    bool deprecated;         /* the request used what will go away */
    const char *type;        /* of the body; NULL: JSON */
    struct json_writer body; /* empty for a 204; the caller frees it */
};

/* Carries a request out, logs it and its result, and fills *answer. */
void api_serve(struct vm *vm, const struct api_request *request, struct api_answer *answer);
