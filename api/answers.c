#include "api/answers.h"

#include "vmm/base/timeline.h"
#include "vmm/base/version.h"

/* Firecracker's released versions have no suffix; the one we answer as is in version.h. */
#define APP_NAME "Firecracker"

int answer_instance(const struct vm *vm, struct api_answer *a, struct error *e)
{
    static const char *const states[VM_STATES] = {
        [VM_NOT_STARTED] = "Not started",
        [VM_RUNNING] = "Running",
        [VM_PAUSED] = "Paused",
    };
    struct json_writer *w = &a->body;

    (void)e;
    json_put(w, "{\"id\":");
    json_put_string(w, vm_id(vm));
    json_put(w, ",\"state\":");
    json_put_string(w, states[vm_state(vm)]);
    json_put(w, ",\"vmm_version\":\"" FIRECRACKER_VERSION "\",\"app_name\":\"" APP_NAME "\"}");
    return 0;
}

int answer_version(const struct vm *vm, struct api_answer *a, struct error *e)
{
    (void)vm;
    (void)e;
    json_put(&a->body, "{\"firecracker_version\":\"" FIRECRACKER_VERSION "\"}");
    return 0;
}

int answer_boot_timeline(const struct vm *vm, struct api_answer *a, struct error *e)
{
    struct json_writer *w = &a->body;

    (void)vm;
    (void)e;
    json_put(w, "{\"exec_us\":0");
    for (enum phase p = 0; p < PHASES; p++) {
        int64_t us = timeline_us(p);

        json_put(w, ",");
        json_put_string(w, timeline_name(p));
        json_put(w, ":");
        if (us < 0)
            json_put(w, "null");
        else
            json_put_unsigned(w, (uint64_t)us);
    }
    json_put(w, "}");
    return 0;
}

int answer_metadata(const struct vm *vm, struct api_answer *a, struct error *e)
{
    const struct mmds_store *store = vm_metadata(vm, e);
    struct mmds_value root;

    if (!store)
        return -1;
    root = mmds_store_root(store);
    json_put(&a->body, mmds_type(root) == MMDS_NULL ? "{}" : root.at);
    return 0;
}
