#include "vmm/config.h"

#include <stdlib.h>

const struct machine_config machine_config_default = {
    .vcpu_count = 1,
    .mem_size_mib = 128,
    .cpu_template = CPU_TEMPLATE_NONE,
    .huge_pages = HUGE_PAGES_NONE,
};

void boot_source_fini(struct boot_source *b)
{
    free(b->kernel_image_path);
    free(b->initrd_path);
    free(b->boot_args);
    *b = (struct boot_source){ 0 };
}

void drive_config_fini(struct drive_config *d)
{
    free(d->drive_id);
    free(d->path_on_host);
    free(d->partuuid);
    free(d->socket);
    *d = (struct drive_config){ 0 };
}
