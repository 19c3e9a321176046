static void libxl_bitmap_rand_init(libxl_bitmap *p)
{
    p->size = test_rand(16);
    p->map = rand_alloc(p->size, 1);
    if (p->map)
        rand_bytes(p->map, p->size);
}
