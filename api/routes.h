/*
 * What each method and path is: one table, a row for each, with the JSON bodies that it takes or
 * shows. The same tables of bodies make up the configuration file.
 */
#pragma once

#include "api/answers.h"
#include "api/wire/http.h"
#include "api/wire/schema.h"
#include "vmm/base/metrics.h"
#include "vmm/machine/vm.h"

/* A piece of a path, between slashes. */
struct token {
    const char *at;
    size_t length;
};

struct route {
    enum http_verb verb;
    const char *first, *second; /* the path's tokens; second NULL: any */
    /* What the second is the id of. A body then begins with the same id. */
    enum { ID_NONE, ID_OF_DRIVE, ID_OF_INTERFACE } id;
    bool is_unknown;           /* nothing is there, whatever the second token */
    answer_fn *answer;         /* to a GET; NULL: what `body` shows of the VM's configuration */
    enum action_kind kind;     /* of all but a GET; ACTIONS: the body says which */
    const struct schema *body; /* NULL: none, or metadata */
    bool takes_metadata;       /* the body is any JSON, a secret of the guest's: never logged */
    size_t at;          /* of what it describes, in struct vm_config (GET) or struct action */
    bool is_item;       /* it describes the one item of a list there */
    const char *member; /* of the configuration file, that says the same; NULL: named as `first` */
    /* What an error begins with: a request's, and one of that member's. NULL where there is no
     * body, and where the file has no such member. */
    const char *subsystem, *subsystem_of_file;
    metric *count, *fails; /* NULL: not counted */
};

/* Whether a piece of a path is that name. */
bool token_is(struct token t, const char *name);

/* The row for a request, whose further tokens mean nothing, as in Firecracker; NULL: none. */
const struct route *route_find(enum http_verb verb, struct token first, struct token second);

/* The row by which a PUT asks for that action; NULL: none. */
const struct route *route_of(enum action_kind kind);

/* The configuration file. What `GET /vm/config` shows of a VM is one, too: of `config` alone. */
struct config_file {
    struct vm_config config; /* but for its CPU template */
    char *cpu_config;        /* the JSON of that, or of a string: a file that has it */
};
extern const struct schema config_file_schema;
