/*
 * Random disks, for the generated test of our types: libxl's own type is imported there, and only libxl's
 * IDL knows how to fill it. Everything that libxl 4.17 has in it, as far as it says it in JSON.
 */
#include <libxl.h>
#include <stdint.h>
#include <stdlib.h>

/* Of the generated program. */
unsigned test_rand(unsigned below);
uint64_t rand_integer(void);
char *rand_str_or_null(void);

void libxl_device_disk_rand_init(libxl_device_disk *p);

static void defbool_rand_init(libxl_defbool *p)
{
    if (test_rand(3))
        libxl_defbool_set(p, test_rand(2));
    else
        libxl_defbool_unset(p);
}

void libxl_device_disk_rand_init(libxl_device_disk *p)
{
    static const libxl_disk_backend backends[] = {
        LIBXL_DISK_BACKEND_UNKNOWN,
        LIBXL_DISK_BACKEND_PHY,
        LIBXL_DISK_BACKEND_TAP,
        LIBXL_DISK_BACKEND_QDISK,
    };
    static const libxl_disk_format formats[] = {
        LIBXL_DISK_FORMAT_UNKNOWN, LIBXL_DISK_FORMAT_QCOW, LIBXL_DISK_FORMAT_QCOW2,
        LIBXL_DISK_FORMAT_VHD,     LIBXL_DISK_FORMAT_RAW,  LIBXL_DISK_FORMAT_EMPTY,
        LIBXL_DISK_FORMAT_QED,
    };

    /* As often as not it stays as initialised, since our types leave such a disk alone. */
    if (test_rand(2))
        return;
    p->backend_domid = rand_integer();
    p->backend_domname = rand_str_or_null();
    p->pdev_path = rand_str_or_null();
    p->vdev = rand_str_or_null();
    p->backend = backends[test_rand(sizeof(backends) / sizeof(*backends))];
    p->format = formats[test_rand(sizeof(formats) / sizeof(*formats))];
    p->script = rand_str_or_null();
    p->removable = rand_integer();
    p->readwrite = rand_integer();
    p->is_cdrom = rand_integer();
    p->direct_io_safe = test_rand(2);
    defbool_rand_init(&p->discard_enable);
    defbool_rand_init(&p->colo_enable);
    defbool_rand_init(&p->colo_restore_enable);
    p->colo_host = rand_str_or_null();
    p->colo_port = rand_integer();
    p->colo_export = rand_str_or_null();
    p->active_disk = rand_str_or_null();
    p->hidden_disk = rand_str_or_null();
}
