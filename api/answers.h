/*
 * What GET requests answer beside the configuration. Beyond Firecracker: metrics for scrapers, and
 * where the time of a start went.
 */
#pragma once

#include "api/wire/json_writer.h"
#include "vmm/machine/vm.h"

struct api_answer {
    unsigned status;         /* 0: the answer comes later (struct api_later) */
    bool deprecated;         /* the request used what will go away */
    const char *type;        /* of the body; NULL: JSON */
    struct json_writer body; /* empty for a 204; the caller frees it */
};

/* -1 with a text for the client. */
typedef int answer_fn(const struct vm *vm, struct api_answer *a, struct error *e);

/* GET / and GET /version. */
answer_fn answer_instance, answer_version;

/* Prometheus' text format 0.0.4: every metric of what this VM has, since the process began, with a
 * comment at its end by which a reader tells that it has all. In exposition.c. */
answer_fn answer_metrics;

/* GET /mmds: all of the metadata. */
answer_fn answer_metadata;

/* Microseconds from exec to each phase, null for those not reached. */
answer_fn answer_boot_timeline;
