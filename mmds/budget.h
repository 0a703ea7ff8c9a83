/*
 * Memory that a guest can make the metadata service hold on one interface: a sum with an end.
 */
#pragma once

#include <stdlib.h>

#include "vmm/base/bug.h"

/* What an allocation costs beside its bytes, at least. */
#define MMDS_ALLOCATION_BYTES 32u

struct mmds_budget {
    size_t left;
};

/* A heap block of n bytes, or NULL where the budget does not have them. */
static inline void *mmds_budget_take(struct mmds_budget *b, size_t n)
{
    void *block;

    if (b->left < MMDS_ALLOCATION_BYTES || n > b->left - MMDS_ALLOCATION_BYTES)
        return NULL;
    block = malloc(n);
    BUG_ON(!block);
    b->left -= n + MMDS_ALLOCATION_BYTES;
    return block;
}

/* Frees a block of n bytes; or none, where it is NULL. */
static inline void mmds_budget_give_back(struct mmds_budget *b, void *block, size_t n)
{
    if (block)
        b->left += n + MMDS_ALLOCATION_BYTES;
    free(block);
}
