/*
 * As much of libxl.h as the test of golden/features.idl needs, and as much as there is of it elsewhere:
 * the types that the IDL imports, with the layout of the crate libxl-idl-builtin and of tests/imported.
 */
#ifndef LIBXL_H
#define LIBXL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define _hidden
#define ERROR_INVAL (-6)

typedef struct libxl_ctx libxl_ctx;
typedef int libxl_devid;

typedef struct {
    int val;
} libxl_defbool;

static inline void libxl_defbool_set(libxl_defbool *p, bool value)
{
    p->val = value ? 1 : -1;
}

static inline void libxl_defbool_unset(libxl_defbool *p)
{
    p->val = 0;
}

typedef struct {
    uint32_t size;
    uint8_t *map;
} libxl_bitmap;

typedef char **libxl_string_list;
typedef char **libxl_key_value_list;

typedef struct {
    uint8_t uuid[16];
} libxl_uuid;

typedef struct {
    void *next, **prev;
} libxl_ev_link;

typedef struct {
    char *vdev;
} libxl_device_disk;

typedef struct {
    const char *s;
    int v;
} libxl_enum_string_table;

#endif
