/* What the generated test of golden/features.idl takes for granted. */

#include <libxl.h>
#include <stdlib.h>

struct libxl_ctx {
    int unused;
};

libxl_ctx *test_ctx_alloc(void);
void test_ctx_free(libxl_ctx *ctx);
void libxl_device_disk_rand_init(libxl_device_disk *p);
char *rand_str(void);

libxl_ctx *test_ctx_alloc(void)
{
    return calloc(1, sizeof(libxl_ctx));
}

void test_ctx_free(libxl_ctx *ctx)
{
    free(ctx);
}

void libxl_device_disk_rand_init(libxl_device_disk *p)
{
    free(p->vdev);
    p->vdev = rand_str();
}
